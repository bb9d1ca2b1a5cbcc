"""A run killed at any moment and resumed is the run that was never killed, to the bit."""

import json
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from mhe_classification.config import ClassificationConfig
from mhe_classification.train import train
from mhe_core.training.checkpoint import CheckpointError, load_checkpoint
from mhe_core.training.loop import TrainingDiverged, TrainingInterrupted

STEPS = 40


def tiny(path, **changes):
    settings = {
        "width": 0.0625,
        "image_size": 8,
        "batch_size": 32,
        "steps": STEPS,
        "log_every": 3,
        "eval_every": 10,
        "checkpoint_every": 1,
        "device": "cpu",
        "resume": True,
        "regularizer": "half_mhe",
    }
    return ClassificationConfig(output=path, **{**settings, **changes})


def figures(run):
    """The records of metrics.jsonl but for the wall clock."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if not k.endswith("_seconds")} for x in lines]


def assert_same(a, b):
    states = [load_checkpoint(run / "checkpoints/last")["state"] for run in (a, b)]
    flat = [torch.utils._pytree.tree_flatten(state)[0] for state in states]
    for x, y in zip(*flat, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
    assert figures(a) == figures(b)


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mhe_classification.train", "sklearn.model_selection"])
    return context


def kill_at_random_until_done(processes, config, seed, kills):
    """Start the run again and again; SIGKILL it at random moments after its first checkpoint."""
    chance = random.Random(seed)
    last = config.output / "checkpoints/last"
    for _ in range(kills):
        process = processes.Process(target=train, args=(config,))
        before = last.stat().st_mtime_ns if last.exists() else 0
        process.start()
        while process.is_alive() and not (last.exists() and last.stat().st_mtime_ns > before):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.25))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    process = processes.Process(target=train, args=(config,))
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("regularizer", "changes"),
    [
        ("none", {"ema": 0.9, "mixup": 0.2}),
        ("half_mhe", {"validation_fraction": 0.2, "accumulate": 2}),
        ("comhe_random", {"projection_dim": 4, "num_projections": 3}),
        ("comhe_angle", {"projection_dim": 4}),
        ("comhe_adversarial", {"projection_dim": 4, "inner_steps": 2}),
    ],
)
def test_killed_and_resumed_is_never_killed(processes, tmp_path, regularizer, changes):
    settings = {"regularizer": regularizer, **changes}
    train(tiny(tmp_path / "whole", **settings))
    kill_at_random_until_done(processes, tiny(tmp_path / "killed", **settings), 0, kills=3)
    assert_same(tmp_path / "whole", tmp_path / "killed")
    assert len(figures(tmp_path / "whole")) == 16  # 3, 6, 9, 10, 12, … 39, 40


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(processes, tmp_path):
    config = tiny(tmp_path / "killed")
    process = processes.Process(target=train, args=(config,))
    process.start()
    half_written = config.output / "checkpoints/.last.writing"
    last = config.output / "checkpoints/last"
    while not (last.exists() and half_written.exists()):
        assert process.is_alive(), "the run ended before a write was seen"
        time.sleep(0)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert 1 <= load_checkpoint(last)["step"] < STEPS
    train(config)
    train(tiny(tmp_path / "whole"))
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_asked_to_stop_it_saves_and_says_how_to_go_on(processes, tmp_path, monkeypatch):
    from mhe_core.training.loop import Loop

    record = Loop._record

    def interrupt(self, taken, stop, progress):
        if taken == 12:
            os.kill(os.getpid(), signal.SIGINT)
        return record(self, taken, stop, progress)

    monkeypatch.setattr(Loop, "_record", interrupt)
    config = tiny(tmp_path / "stopped", checkpoint_every=1000)
    with pytest.raises(TrainingInterrupted, match=r"after step 12 of 40.*--resume"):
        train(config)
    assert load_checkpoint(tmp_path / "stopped/checkpoints/last")["step"] == 12
    monkeypatch.undo()
    train(config)
    train(tiny(tmp_path / "whole", checkpoint_every=1000))
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path):
    config = tiny(tmp_path / "run", lr=1e12, warmup=0.0, log_every=1)
    with pytest.raises(TrainingDiverged, match="not finite at step"):
        train(config)
    good = load_checkpoint(tmp_path / "run/checkpoints/last")
    bad = load_checkpoint(tmp_path / "run/checkpoints/diverged")
    assert bad["step"] > good["step"]
    assert figures(tmp_path / "run")[-1]["step"] == good["step"]


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    train(tiny(tmp_path / "a", steps=2))
    (tmp_path / "b/checkpoints").mkdir(parents=True)
    os.link(tmp_path / "a/checkpoints/last", tmp_path / "b/checkpoints/last")
    with pytest.raises(CheckpointError, match=r"the model in .*last does not fit"):
        train(tiny(tmp_path / "b", width=0.125))


def test_bfloat16_follows_float32(tmp_path):
    runs = {amp: tmp_path / amp for amp in ("no", "bf16")}
    for amp, path in runs.items():
        train(tiny(path, amp=amp, steps=5, log_every=1, eval_every=5))
    for a, b in zip(*(figures(path) for path in runs.values()), strict=True):
        assert a["loss"] != b["loss"]
        assert b["loss"] == pytest.approx(a["loss"], rel=0.05)


def test_a_complete_run_is_not_trained_again(tmp_path):
    first = train(tiny(tmp_path / "run", steps=4))
    assert train(tiny(tmp_path / "run", steps=4)) == first
    assert first["test_accuracy"] == pytest.approx(1 - first["test_error"])
    assert {"seed", "steps", "seconds", "python", "torch", "mhe-core", "device"} <= set(first)
