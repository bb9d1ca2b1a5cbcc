"""A run killed at any moment and resumed is the run that was never killed, to the bit."""

import os
import signal

import pytest
from mhe_classification.config import ClassificationConfig
from mhe_classification.train import train
from mhe_core.training.checkpoint import CheckpointError, load_checkpoint
from mhe_core.training.loop import TrainingDiverged, TrainingInterrupted
from support.forks import forked
from support.kills import kill, kill_again_and_again
from support.runs import assert_same_run, records

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


@pytest.mark.parametrize(
    ("regularizer", "changes"),
    [
        ("none", {"ema": 0.9, "mixup": 0.2}),
        ("half_mhe", {"validation_fraction": 0.2, "accumulate": 2}),
        ("comhe_random", {"projection_dim": 4, "num_projections": 3}),
        ("comhe_angle", {"projection_dim": 4, "steps": 20}),
        ("comhe_adversarial", {"projection_dim": 4, "inner_steps": 2, "steps": 20}),
    ],
)
def test_killed_and_resumed_is_never_killed(tmp_path, regularizer, changes):
    settings = {"regularizer": regularizer, **changes}
    train(tiny(tmp_path / "whole", **settings))
    kill_again_and_again(train, tiny(tmp_path / "killed", **settings))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    steps = settings.get("steps", STEPS)  # a multiple of eval_every
    expected = sorted({*range(3, steps, 3), *range(10, steps + 1, 10)})
    assert [record["step"] for record in records(tmp_path / "whole")] == expected


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    config = tiny(tmp_path / "killed")
    half_written = config.output / "checkpoints/.last.writing"
    last = config.output / "checkpoints/last"
    with forked(train, config) as process:
        kill(process, lambda: last.exists() and half_written.exists())
    assert 1 <= load_checkpoint(last)["step"] < STEPS
    train(config)
    train(tiny(tmp_path / "whole"))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_asked_to_stop_it_saves_and_says_how_to_go_on(tmp_path, monkeypatch):
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
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path):
    config = tiny(tmp_path / "run", lr=1e12, warmup=0.0, log_every=1)
    with pytest.raises(TrainingDiverged, match="not finite at step"):
        train(config)
    good = load_checkpoint(tmp_path / "run/checkpoints/last")
    bad = load_checkpoint(tmp_path / "run/checkpoints/diverged")
    assert bad["step"] > good["step"]
    assert records(tmp_path / "run")[-1]["step"] == good["step"]


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
    for a, b in zip(*(records(path) for path in runs.values()), strict=True):
        assert a["loss"] != b["loss"]
        assert b["loss"] == pytest.approx(a["loss"], rel=0.05)


def test_a_complete_run_is_not_trained_again(tmp_path):
    first = train(tiny(tmp_path / "run", steps=4))
    assert train(tiny(tmp_path / "run", steps=4)) == first
    assert first["test_accuracy"] == pytest.approx(1 - first["test_error"])
    assert {"seed", "steps", "seconds", "python", "torch", "mhe-core", "device"} <= set(first)
