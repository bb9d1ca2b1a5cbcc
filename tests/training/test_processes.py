"""Devices and processes: one answer for accelerate and torch.distributed, and an end to all."""

import os

import pytest
import torch
from mhe_core.training.checkpoint import load_checkpoint
from mhe_core.training.processes import DeviceError, make_accelerator, resolve_device
from support.forks import run_processes
from support.programs import run_program, torchrun
from support.tiny import TinyConfig, records, train

# Trains, then meets a bug; says what accelerate and torch.distributed hold at either's end.
PROGRAM = """
import sys
import torch.distributed as dist
from mhe_core.network._processes import process
from mhe_core.training.command import run_command
from mhe_core.training.processes import make_accelerator
from support.forks import run_processes
from support.programs import run_program, torchrun
from support.tiny import main

sizes = []
def command(arguments):
    main(arguments)
    accelerator = make_accelerator("auto")
    assert (accelerator.process_index, accelerator.num_processes) == process()
    sizes.append(accelerator.num_processes)

how, *run = sys.argv[1:]
if how == "good":
    assert run_command("tiny", command, run) == 0
    assert sizes == [2] and not dist.is_initialized()
    print("ended")
else:
    try:
        run_command("tiny", main, [*run, "--fails", "1"])
    except ValueError as error:
        assert str(error) == "a bug" and not dist.is_initialized()
        print("ended")
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_torchrun_without_a_gpu_trains_as_one_process_does_and_ends_its_group(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    settings = {"steps": 4, "log_every": 1, "batch_size": 16}
    flags = ["--steps=4", "--log-every=1", "--batch-size=16", "--device=auto"]
    tests = {"PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    done = run_program(
        *torchrun(2, program, "good", "--output", tmp_path / "good", *flags), env=tests
    )
    assert done.stdout.count("ended") == 2
    # In processes of its own: a second group would find the first one's addresses in the store.
    for done in run_processes(2, program, "bad", "--output", tmp_path / "bad", *flags):
        assert "ended" in done.stdout
    train(TinyConfig(output=tmp_path / "one", **settings))
    one, two = (load_checkpoint(tmp_path / name / "checkpoints/last") for name in ("one", "good"))
    torch.testing.assert_close(one["state"]["model"], two["state"]["model"], rtol=1e-5, atol=1e-7)
    for a, b in zip(records(tmp_path / "one"), records(tmp_path / "good"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["penalty"] == pytest.approx(b["penalty"], rel=1e-5)
    assert not (tmp_path / "bad/summary.json").exists()


@pytest.fixture
def gpus(monkeypatch):
    """Let torch say that there are so many GPUs, and the launcher which process this is."""
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)

    def pretend(number, rank=None, processes=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        if rank is not None:
            monkeypatch.setenv("LOCAL_RANK", str(rank))
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))

    return pretend


@pytest.mark.parametrize(
    ("number", "process", "asked", "given"),
    [
        (0, None, "cpu", "cpu"),
        (2, None, "auto", "cuda:0"),
        (2, None, "cuda", "cuda:0"),
        (2, None, "cuda:1", "cuda:1"),
        (2, None, "cpu", "cpu"),
        (2, (1, 2), "auto", "cuda:1"),
        (2, (1, 2), "cuda", "cuda:1"),
        (0, (1, 2), "auto", "cpu"),
        (1, (1, 2), "cpu", "cpu"),
    ],
)
def test_every_process_has_the_device_that_was_asked_for(gpus, number, process, asked, given):
    gpus(number, *(process or ()))
    assert resolve_device(asked) == torch.device(given)


@pytest.mark.parametrize(
    ("number", "process", "asked", "message"),
    [
        (0, None, "banana", "got banana"),
        (0, None, "cuda", "no GPU, got cuda"),
        (0, None, "cuda:9", "no GPU, got cuda"),
        (2, None, "cuda:9", "cuda:0 to cuda:1, got cuda:9"),
        (0, None, "meta", "got meta"),
        (1, (1, 2), "auto", "a GPU for each of 2 processes, found 1"),
        (2, (1, 2), "cuda:0", "got cuda:0"),
    ],
)
def test_a_device_that_is_not_here_is_an_error(gpus, number, process, asked, message):
    gpus(number, *(process or ()))
    with pytest.raises(DeviceError, match=message):
        make_accelerator(asked)


def test_each_run_of_a_process_has_its_own_precision_and_leaves_no_variable():
    before = dict(os.environ)
    for amp in ("no", "bf16", "no"):
        assert make_accelerator("cpu", amp).mixed_precision == amp
    assert dict(os.environ) == before


@pytest.mark.cuda
def test_each_run_of_a_process_has_its_own_device(tmp_path):
    before = dict(os.environ)
    for number, device in enumerate(("cpu", "cuda", "cpu", "auto")):
        config = TinyConfig(output=tmp_path / str(number), steps=2, batch_size=16, device=device)
        assert train(config)["device"] == ("cpu" if device == "cpu" else "cuda:0")
    assert dict(os.environ) == before
