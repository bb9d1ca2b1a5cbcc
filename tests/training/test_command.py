"""A user's error is one line and exit status 2; a bug's traceback is never hidden."""

import signal
import sys

import pytest
from mhe_core import NetworkRegularizer, cli, register_regularizer
from mhe_core.errors import UserError, users_request
from mhe_core.training.checkpoint import CheckpointError
from mhe_core.training.command import dispatch, run_command
from mhe_core.training.images import DataError
from mhe_core.training.loop import TrainingDiverged, TrainingInterrupted
from mhe_core.training.processes import DeviceError
from mhe_core.training.run import RunError
from torch import nn


def raising(error):
    def command(arguments):
        raise error

    return command


@pytest.mark.parametrize(
    "error",
    [
        UserError("m"),
        RunError("m"),
        DataError("m"),
        CheckpointError("m"),
        DeviceError("m"),
        TrainingDiverged("m"),
        FileNotFoundError("m"),
        OSError(28, "m"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_users_error_is_one_line_and_with_traceback_all_of_it(capsys, error):
    assert run_command("prog", raising(error), []) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("prog: error: ")
    assert printed.count("\n") == 1
    with pytest.raises(type(error)):
        run_command("prog", raising(error), ["--traceback"])


@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError, ImportError, KeyError])
def test_a_bug_is_raised(error):
    with pytest.raises(error):
        run_command("prog", raising(error("a bug")), [])


def test_what_stopped_a_command_is_its_exit_status(capsys):
    stopped = TrainingInterrupted("continue with --resume", signal.SIGTERM)
    assert run_command("prog", raising(stopped), []) == 143
    assert capsys.readouterr().err == "prog: continue with --resume\n"
    assert run_command("prog", raising(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "prog: interrupted\n"


def test_what_a_library_says_of_a_users_setting_is_the_users(capsys):
    def command(arguments):
        with users_request("--optimizer adm"):
            raise ValueError("no such optimizer")

    assert run_command("prog", command, []) == 2
    assert capsys.readouterr().err == (
        "prog: error: --optimizer adm: no such optimizer (--traceback shows where)\n"
    )


class Fails(nn.Module):
    """A third party's regularizer that is not up to every layer."""

    def __init__(self, num_neurons, dim):
        super().__init__()
        self.fails_in_update = num_neurons == 3

    def forward(self, neurons):
        if len(neurons) == 4:
            raise IndexError("list index out of range")
        return neurons.sum()

    def update(self, neurons, lr):
        if self.fails_in_update:
            raise KeyError("lr")


def test_a_plug_in_that_raises_is_named_with_the_layer_and_ours_is_a_bug(monkeypatch):
    register_regularizer("fails", Fails)
    regularizer = NetworkRegularizer(nn.Sequential(nn.Linear(5, 4)), "fails", "fails")
    with pytest.raises(UserError, match=r"Fails fails on layer '0': IndexError: list index out"):
        regularizer()
    regularizer = NetworkRegularizer(nn.Sequential(nn.Linear(5, 3)), "fails", "fails")
    with pytest.raises(UserError, match=r"Fails fails on layer '0': KeyError: 'lr'"):
        regularizer.update(0.1)
    ours = NetworkRegularizer(nn.Sequential(nn.Linear(5, 4)), None, "comhe_random")
    kind = type(next(iter(ours.regularizers.values())))
    monkeypatch.setattr(kind, "forward", Fails.forward)
    with pytest.raises(IndexError):
        ours()


def test_the_command_mhe_ends_the_same(capsys, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", "nowhere.pt"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("mhe: error: ")
    with pytest.raises(FileNotFoundError):
        cli.main(["inspect", "nowhere.pt", "--traceback"])
    monkeypatch.setattr(sys, "argv", ["prog", "paint"])
    assert dispatch("prog", {}) == 2
