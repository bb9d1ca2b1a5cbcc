"""--tracker: what is in the logs, read back."""

import json
import time

import numpy as np
import pytest
from accelerate import tracking as accelerates
from mhe_core.errors import UserError
from mhe_core.training.config import TrainingConfig
from mhe_core.training.run import Run
from mhe_core.training.tracking import tracker_names
from PIL import Image
from support.tiny import TinyConfig, train

SHORT = {"steps": 6, "log_every": 1, "eval_every": 3, "checkpoint_every": 2, "batch_size": 16}
SHORT |= {"device": "cpu", "tracker": "tensorboard"}


def log_of(run):
    """TensorBoard's own reader of a run's log."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(run / "tensorboard")).Reload()


def assert_log_has_the_records(run):
    log = log_of(run)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {name for record in records for name in record} - {"step"}
    assert set(log.Tags()["scalars"]) == names
    for name in names:
        expected = [(record["step"], record[name]) for record in records if name in record]
        found = [(event.step, event.value) for event in log.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in expected]
        np.testing.assert_allclose([v for _, v in found], [v for _, v in expected], rtol=1e-6)


def test_tensorboard_has_every_record_and_the_settings(tmp_path):
    pytest.importorskip("tensorboard")
    train(TinyConfig(output=tmp_path, **SHORT))
    assert_log_has_the_records(tmp_path)
    (settings,) = (tmp_path / "tensorboard").glob("*/hparams.yml")
    assert "batch_size: 16" in settings.read_text()


def test_a_resumed_run_goes_on_in_the_same_log(tmp_path):
    pytest.importorskip("tensorboard")

    failing = True

    def evaluate(taken):
        if failing and taken == 6:
            raise RuntimeError("power cut")
        return {"error": 1.0 / taken}

    def go_on(**more):
        train(TinyConfig(output=tmp_path, **{**SHORT, **more}), evaluate)

    with pytest.raises(RuntimeError, match="power cut"):
        go_on()
    # Back to the checkpoint of step 4; step 5, which is taken again, is in the log.
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "previous").replace(checkpoints / "last")
    assert [event.step for event in log_of(tmp_path).Scalars("loss")][-1] == 5
    failing = False
    time.sleep(1.1)  # TensorBoard orders its files by the second in which they were begun
    go_on(resume=True)
    assert_log_has_the_records(tmp_path)
    assert len(list((tmp_path / "tensorboard").glob("*/hparams.yml"))) == 1


def test_pictures_are_in_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "grid.png")
    run = Run(TrainingConfig(output=tmp_path, tracker="tensorboard"))
    run.trackers.picture("samples", tmp_path / "grid.png", 7)
    run.close()
    (event,) = log_of(tmp_path).Images("samples")
    assert (event.step, event.height, event.width) == (7, 4, 6)


def test_none_is_the_default_and_leaves_nothing(tmp_path):
    train(TinyConfig(output=tmp_path, **{**SHORT, "tracker": "none", "steps": 1}))
    assert TinyConfig(output=tmp_path).tracker == "none"
    assert not (tmp_path / "tensorboard").exists()


def test_a_tracker_that_is_not_there_is_named_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"of aim, .*tensorboard.*, got 'banana'"):
        tracker_names("banana")
    monkeypatch.setattr(accelerates, "_available_trackers", [])
    with pytest.raises(UserError, match=r"pip install 'mhe-core\[tensorboard\]'"):
        train(TinyConfig(output=tmp_path / "run", **SHORT))
    with pytest.raises(UserError, match="pip install wandb"):
        tracker_names("wandb")
    assert not (tmp_path / "run").exists()
