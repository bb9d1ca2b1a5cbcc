"""What asks a run to stop, at any moment, leaves its state saved."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mhe_core.training.checkpoint import load_checkpoint
from mhe_core.training.stopping import StopRequest, TrainingInterrupted
from support.programs import started, torchrun
from support.tiny import TinyConfig, records, train

TINY = ["-m", "support.tiny", "--batch-size=16", "--device=auto"]
TESTS = {"PYTHONPATH": str(Path(__file__).parents[1])}
SETTINGS = {"steps": 8, "log_every": 4, "batch_size": 16}


def state(run):
    return load_checkpoint(run / "checkpoints/last")


def assert_same(a, b):
    assert state(a)["step"] == state(b)["step"]
    torch.testing.assert_close(state(a)["state"], state(b)["state"], rtol=0, atol=0)
    assert records(a) == records(b)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_stops_after_the_step_and_the_run_goes_on_to_the_bit(tmp_path, name):
    number = getattr(signal, name)
    config = TinyConfig(output=tmp_path / "run", resume=True, **SETTINGS)
    train(TinyConfig(output=tmp_path / "whole", **SETTINGS))

    def evaluate(taken):
        if taken == 3:
            os.kill(os.getpid(), number)
            time.sleep(1)
        return {}

    with pytest.raises(TrainingInterrupted, match=r"after step 3 of 8.*--resume") as stopped:
        train(config, evaluate)
    assert stopped.value.status == 128 + number
    assert state(tmp_path / "run")["step"] == 3
    assert [record["step"] for record in records(tmp_path / "run")] == []
    train(config)
    assert_same(tmp_path / "run", tmp_path / "whole")  # the evaluation of step 3 is made up for


@pytest.mark.parametrize("kind", ["sleep", "blocked"])
def test_sigterm_and_sigkill_in_a_long_evaluation_lose_nothing(tmp_path, kind):
    run = tmp_path / "run"
    flags = ["--steps=8", "--log-every=4", f"--output={run}", f"--evaluation={kind}"]
    command = (sys.executable, *TINY, *flags)
    with started(*command, env=TESTS, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout.readline() == "evaluating\n"
        program.terminate()
        if kind == "sleep":
            assert program.wait(8) == 128 + signal.SIGTERM
            assert "state saved: continue with --resume" in program.stderr.read()
        else:  # in a C function Python learns of no signal
            with pytest.raises(subprocess.TimeoutExpired):
                program.wait(1)
            program.kill()
    assert state(run)["step"] == 3
    assert not (run / "summary.json").exists()


def test_torchruns_sigterm_stops_all_processes_after_the_same_step(tmp_path):
    run = tmp_path / "run"
    flags = [f"--output={run}", "--steps=100000", "--step-seconds=0.01", "--log-every=5"]
    command = torchrun(2, *TINY, *flags, "--eval-every=1000000", "--checkpoint-every=1000000")
    with started(*command, env=TESTS, stderr=subprocess.PIPE) as program:
        while not (run / "metrics.jsonl").exists():
            assert program.poll() is None
            time.sleep(0.05)
        assert not (run / "checkpoints/last").exists()
        program.terminate()
        errors = program.communicate(timeout=60)[1]
    assert errors.count("state saved: continue with --resume") == 1, errors
    taken = state(run)["step"]
    assert f"after step {taken} of 100000" in errors
    assert taken >= 5


def test_a_second_ctrl_c_does_not_wait(monkeypatch):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun's copy of it
        assert stop.agreed()
        monkeypatch.setattr("mhe_core.training.stopping.IMPATIENT", -1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.agreed()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_before_the_first_step_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("support.tiny.made_up", interrupted)
    with pytest.raises(TrainingInterrupted, match=r"continue with --resume --output .*run"):
        train(TinyConfig(output=tmp_path / "run", **SETTINGS))
    assert not (tmp_path / "run").exists()
