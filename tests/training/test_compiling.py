"""--compile: the same steps by compiled networks, and a plain word where nothing can compile."""

import os
import sys

import pytest
import torch
from mhe_core.errors import UserError
from mhe_core.training.compiling import compiled
from support.programs import run_program
from support.runs import flat, state
from support.tiny import TinyConfig, records, train
from torch import nn

CPU = torch.device("cpu")


def test_without_the_flag_the_network_is_what_it_was():
    network = nn.Linear(2, 2)
    assert compiled(network, False, CPU) is network


def test_a_compiled_network_has_the_parameters_and_is_called_compiled(traced_graphs):
    network = nn.Linear(2, 2)
    fast = compiled(network, True, CPU)
    x = torch.ones(1, 2)
    assert torch.equal(fast(x), network(x))
    assert list(fast.parameters()) == list(network.parameters())
    assert traced_graphs["Linear"] == 1


def test_where_nothing_can_be_compiled_the_error_says_what_is_missing(monkeypatch):
    def without_compiler(called, **options):
        def call(*arguments):
            raise RuntimeError("no g++\nwith a long explanation")

        return call

    monkeypatch.setattr(torch, "compile", without_compiler)
    with pytest.raises(UserError, match=r"--compile.* C\+\+ compiler.*RuntimeError: no g\+\+$"):
        compiled(nn.Linear(2, 2), True, CPU)


@pytest.mark.slow
def test_compiled_by_the_real_compiler_a_run_is_resumed_and_loads(tmp_path):
    settings = {"batch_size": 16, "steps": 4, "log_every": 1, "checkpoint_every": 1}
    train(TinyConfig(output=tmp_path / "plain", **settings))
    fast = {**settings, "output": tmp_path / "fast", "compile": True}
    train(TinyConfig(**{**fast, "steps": 2}))
    train(TinyConfig(**fast, resume=True))
    ours, plain = flat(state(tmp_path / "fast")), flat(state(tmp_path / "plain"))
    assert ours.keys() == plain.keys()
    torch.testing.assert_close(ours, plain)
    losses = [[one["loss"] for one in records(tmp_path / run)] for run in ("fast", "plain")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_a_command_without_compiler_ends_in_a_line_and_claims_nothing(tmp_path):
    run = tmp_path / "run"
    flags = ("--output", run, "--steps", 1, "--batch-size", 16, "--device", "cpu", "--compile")
    env = {"PATH": str(tmp_path), "CXX": "absent-compiler"}
    env |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": "tests"}
    done = run_program(sys.executable, "-m", "support.tiny", *flags, env=env, status=2)
    assert "--compile: torch.compile does not work here for cpu" in done.stderr
    assert "Traceback" not in done.stderr
    assert not os.path.exists(run / "config.yaml")
