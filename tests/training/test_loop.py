"""What is due after which step, what a directory is claimed for, and how a run goes on."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from mhe_core.training.checkpoint import CheckpointError, load_checkpoint
from mhe_core.training.command import parse
from mhe_core.training.compare import compare_runs
from mhe_core.training.loop import TrainingInterrupted, restore_state
from mhe_core.training.run import RunError
from mhe_core.training.wrappers import load_state, state_of
from PIL import Image
from support.tiny import TinyConfig, records, train
from timm.utils import ModelEmaV3
from torch import nn


def config(path, **changes):
    return TinyConfig(output=path, **{"steps": 12, "batch_size": 16, **changes})


def test_records_evaluations_and_checkpoints_have_intervals_of_their_own(tmp_path):
    evaluated = []

    def evaluate(taken):
        evaluated.append((taken, load_checkpoint(tmp_path / "checkpoints/last")["step"]))
        return {"error": 1.0}

    train(config(tmp_path, log_every=4, eval_every=3, checkpoint_every=5), evaluate)
    assert evaluated == [(3, 3), (6, 6), (9, 9), (12, 12)]  # and saved before
    found = records(tmp_path)
    assert [r["step"] for r in found] == [3, 4, 6, 8, 9, 12]
    assert [r["step"] for r in found if "error" in r] == [3, 6, 9, 12]
    assert load_checkpoint(tmp_path / "checkpoints/previous")["step"] == 10


def test_evaluations_draw_what_a_resumed_run_draws(tmp_path):
    train(config(tmp_path / "whole", log_every=4))

    def killed(taken):
        raise SystemExit if taken == 6 else RuntimeError

    with pytest.raises((SystemExit, RuntimeError)):
        train(config(tmp_path / "killed", log_every=4), killed)
    train(config(tmp_path / "killed", log_every=4, resume=True))
    assert records(tmp_path / "killed") == records(tmp_path / "whole")


def test_settings_with_which_no_step_can_be_taken_claim_nothing(tmp_path):
    run = tmp_path / "run"
    for wrong in ({"fails": 0}, {"batch_size": 1000}):
        with pytest.raises(ValueError, match=r"a bug|at most the 64"):
            train(config(run, **wrong))
        assert not run.exists()
    train(config(run))
    assert yaml.safe_load((run / "config.yaml").read_text())["steps"] == 12


def test_a_complete_run_can_be_trained_longer_and_says_so(tmp_path):
    short = train(config(tmp_path, steps=4))
    command = ["--output", str(tmp_path), "--resume"]
    assert train(parse(TinyConfig, command, "tiny")) == short
    with pytest.raises(RunError, match="--steps was 4, is 3"):
        train(parse(TinyConfig, [*command, "--steps", "3"], "tiny"))
    longer = train(parse(TinyConfig, [*command, "--steps", "9"], "tiny"))
    assert (longer["steps"], longer["extended_at"]) == (9, [4])
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (settings["steps"], settings["extended_at"]) == (9, [4])
    assert [record["step"] for record in records(tmp_path)] == [3, 4, 6, 9]
    assert json.loads((tmp_path / "summary-4.json").read_text()) == short
    (tmp_path / "summary.json").unlink()
    with pytest.raises(RunError, match="a complete run can be given more"):
        train(parse(TinyConfig, [*command, "--steps=20"], "tiny"))
    assert train(parse(TinyConfig, command, "tiny"))["extended_at"] == [4]


def test_epochs_can_be_more_and_steps_take_their_place(tmp_path):
    train(config(tmp_path, steps=None, epochs=1))
    command = ["--output", str(tmp_path), "--resume"]
    assert train(parse(TinyConfig, [*command, "--epochs=2"], "tiny"))["steps"] == 8
    assert train(parse(TinyConfig, [*command, "--steps=9"], "tiny"))["extended_at"] == [4, 8]


@pytest.fixture
def folder(tmp_path):
    """Real files, of noise."""
    for number in range(32):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        file = tmp_path / "images" / "abcd"[number % 4] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return tmp_path / "images"


def test_a_moved_folder_is_no_other_data_and_another_is(tmp_path, folder):
    run, moved = tmp_path / "run", tmp_path / "moved"
    train(config(run, data=str(folder), steps=4))
    (run / "summary.json").unlink()
    folder.rename(moved)
    train(config(run, data=str(moved), steps=4, resume=True))
    assert yaml.safe_load((run / "config.yaml").read_text())["data"] == str(moved)
    (run / "summary.json").unlink()
    other = shutil.copytree(moved, tmp_path / "other")
    (other / "a/0.png").rename(other / "a/another.png")
    with pytest.raises(CheckpointError, match="trained on other images"):
        train(config(run, data=str(other), steps=4, resume=True))
    assert yaml.safe_load((run / "config.yaml").read_text())["data"] == str(moved)


def test_moved_weights_are_no_others_and_others_are(tmp_path):
    """A file, and another run, which has its best weights' digest."""
    other, run = tmp_path / "other", tmp_path / "run"
    train(config(other, steps=4))
    for start in (other / "checkpoints" / "best", other):
        shutil.rmtree(run, ignore_errors=True)
        train(config(run, steps=4, init=start))
        (run / "summary.json").unlink()
        moved = shutil.copytree(other, tmp_path / f"moved from {start.name}")
        place = moved if start == other else moved / "checkpoints" / "best"
        train(config(run, steps=4, init=place, resume=True))
        assert yaml.safe_load((run / "config.yaml").read_text())["init"] == str(place)
        (run / "summary.json").unlink()
        best = moved / "checkpoints" / "best"
        content = best.read_bytes()
        best.unlink()
        best.write_bytes(content[:-1] + b"x")
        with pytest.raises(CheckpointError, match="other --init"):
            train(config(run, steps=4, init=place, resume=True))
    with pytest.raises(RunError, match="--init was"):
        train(config(run, steps=4, resume=True))


def test_compare_checks_every_method_and_folder_before_it_trains(tmp_path):
    trained = []

    def check(settings):
        if settings.regularizer == "mh":
            raise ValueError("no such regularizer")

    methods = {name: config(tmp_path, regularizer=name) for name in ("none", "mh")}
    with pytest.raises(ValueError, match="no such"):
        compare_runs(trained.append, methods, (0, 1), tmp_path, check=check)
    assert trained == []
    assert list(tmp_path.iterdir()) == []

    methods = {name: config(tmp_path, regularizer=name, steps=4) for name in ("none", "mhe")}
    compare_runs(train, methods, (0,), tmp_path, check=check)
    changed = {**methods, "mhe": config(tmp_path, regularizer="mhe", steps=4, lr=0.2)}
    with pytest.raises(RunError, match=r"--lr was 0\.1, is 0\.2"):
        compare_runs(trained.append, changed, (1, 0), tmp_path)
    longer = {"none": config(tmp_path, steps=6)}
    with pytest.raises(RunError, match="complete after 4 steps: give --resume"):
        compare_runs(trained.append, longer, (0,), tmp_path)
    assert trained == []
    longer = {"none": config(tmp_path, steps=6, resume=True)}
    assert compare_runs(train, longer, (0,), tmp_path).summaries["none"][0]["steps"] == 6


def test_compare_that_is_stopped_says_how_to_go_on(tmp_path):
    def stopped(settings):
        raise TrainingInterrupted("state saved", 15)

    with pytest.raises(TrainingInterrupted, match="give the same command again") as error:
        compare_runs(stopped, {"none": config(tmp_path)}, (0,), tmp_path)
    assert error.value.status == 143


def test_a_log_has_few_lines_with_images_a_second_and_the_time_left(tmp_path, capsys):
    train(config(tmp_path, log_every=1, eval_every=6))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    pattern = r"step 6/12  loss [\d.]+  .*error .*\(\d+ images/s, \d\d:\d\d left\)"
    assert re.fullmatch(pattern, lines[0])
    assert re.fullmatch(r"step 12/12 .*\(\d+ images/s\)", lines[1])


def wrappers():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    inner = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    inner[0] = torch.compile(inner[0], backend="eager")
    return {
        "none": model,
        "ema": ModelEmaV3(model),
        "data parallel": nn.DataParallel(model),
        "compiled": torch.compile(model, backend="eager"),
        "compiled inside": inner,
        "twice": nn.DataParallel(torch.compile(model, backend="eager")),
        "accelerate": Accelerator(cpu=True).prepare(model),
    }


@pytest.mark.parametrize("name", list(wrappers()))
def test_what_was_saved_through_a_wrapper_loads_without_it_and_the_other_way(name):
    saved = state_of(wrappers()[name])
    plain = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert list(saved) == list(plain.state_dict())
    plain.load_state_dict(saved)
    for parameter in plain.parameters():
        parameter.data += 1
    wrapped = wrappers()[name]
    load_state(wrapped, state_of(plain))
    torch.testing.assert_close(state_of(wrapped), plain.state_dict())
    other = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    load_state(other, wrapped.state_dict())  # of runs that were saved with the prefixes
    torch.testing.assert_close(other.state_dict(), plain.state_dict())
    with pytest.raises(CheckpointError, match="does not fit"):
        restore_state({"model": nn.Linear(3, 2)}, {"model": saved}, "file")
