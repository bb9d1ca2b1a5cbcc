"""The commands as a user types them, on tiny real data, in processes of their own."""

import json

import pytest
import yaml
from mhe_classification import compare
from support.forks import run_processes, run_python
from support.programs import script
from support.runs import records
from support.wiring import count_calls

TINY = ["--width", "0.0625", "--image-size", "8", "--batch-size", "32", "--device", "cpu"]


def test_train_test_and_resume(tmp_path, command):
    out = tmp_path / "run"
    arguments = ["train", "--output", out, "--steps", 6, *TINY]
    trained = run_python(script("mhe-classification"), *arguments, "--regularizer", "half_mhe")
    assert "test_error" in trained.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert {"step", "loss", "penalty"} <= set(records(out)[-1])
    assert yaml.safe_load((out / "config.yaml").read_text())["regularizer"] == "half_mhe"
    tested = run_python("-m", "mhe_classification.test", out, "--device", "cpu")
    report = json.loads(tested.stdout)
    assert report["test_error"] == summary["test_error"]

    again = command("mhe-classification", *arguments, status=2)
    assert "already holds a run" in again.stderr
    command("mhe-classification", "train", "--output", out, "--resume", "--workers", "1")


def test_a_third_partys_regularizer_needs_no_change_here(tmp_path, example_plugin):
    out = tmp_path / "run"
    arguments = ["--regularizer", "minimal_angle", "--hidden-weight", "0.07", "--steps", 3, *TINY]
    train = ("-m", "mhe_classification.train", "--output", out, *arguments)
    run_python(*train, env={"PYTHONPATH": str(example_plugin)})
    assert records(out)[-1]["penalty"] != 0


def test_compare_writes_table_and_curves_and_keeps_complete_runs(tmp_path, command):
    arguments = ["compare", "--output", tmp_path, "--regularizers", "none,mhe", "--seeds", "0,1"]
    arguments += ["--steps", 4, "--eval-every", 2, *TINY]
    printed = command("mhe-classification", *arguments).stdout
    table = (tmp_path / "table.md").read_text()
    assert table in printed
    assert "curves.png" in printed
    assert [line.split(" | ")[0] for line in table.splitlines()[2:4]] == ["| none", "| mhe"]
    content = json.loads((tmp_path / "table.json").read_text())
    assert [run["seed"] for run in content["methods"]["mhe"]["runs"]] == [0, 1]
    for picture in ("curves.png", "angles.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
    (tmp_path / "mhe/seed1/summary.json").unlink()
    weights = tmp_path / "none/seed0/checkpoints/last"
    before = weights.stat().st_mtime_ns
    command("mhe-classification", *arguments)
    assert weights.stat().st_mtime_ns == before
    assert (tmp_path / "table.md").read_text().splitlines()[0] == table.splitlines()[0]


def test_compare_draws_errors_against_learning_rates(tmp_path, monkeypatch):
    loaded = count_calls(monkeypatch, compare, "load_splits")
    arguments = ["--output", tmp_path, "--regularizers", "none,mhe", "--seeds", "0", "--steps", 2]
    arguments += ["--lrs", "0.01,0.1,1e30", *TINY]
    arguments += ["--validation-fraction", 0.2]
    compare.main(list(map(str, arguments)))
    assert len(loaded) == 1  # the images of six runs
    for lr in (0.01, 0.1):  # settings are chosen by held-out images: the difference is theirs
        heading = (tmp_path / f"lr{lr}/table.md").read_text().splitlines()[0]
        assert heading.startswith("| method | validation error, % | test error, % | hidden")
        assert heading.endswith("| validation error, %: minus none |")
    assert (tmp_path / "learning_rates.png").stat().st_size > 5_000
    assert "| mhe | diverged |" in (tmp_path / "lr1e+30/table.md").read_text()
    for lr in (0.01, 0.1):
        settings = yaml.safe_load((tmp_path / f"lr{lr}/mhe/seed0/config.yaml").read_text())
        assert settings["lr"] == lr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train", "--output", "r", "--data", "nowhere"], 2, "'nowhere'"),
        (["train", "--output", "r", "--regularizer", "half_mh"], 2, "half_mhe"),
        (["train", "--output", "r", "--model", "vgg"], 2, "vgg"),
        (["train", "--output", "r", "--regularizer", "mhe", "--inner-steps", "2"], 2, "inner"),
        (["train"], 2, "--output"),
        (["train", "--output", "r", "--schedule", "none"], 2, "--schedule"),
        (["train", "--output", "r", "--optimizer", "adm"], 2, "--optimizer adm"),
        (["train", "--output", "r", "--mixup", "1", "--batch-size", "33"], 2, "even --batch-size"),
        (["train", "--output", "r", "--device", "banana"], 2, "got banana"),
        (["test", "nowhere"], 2, "expected a run directory"),
        (["paint"], 2, "expected a command, got 'paint'"),
    ],
)
def test_a_users_error_is_one_message(tmp_path, monkeypatch, command, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    printed = command("mhe-classification", *arguments, status=status).stderr
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "r").exists()


def test_two_processes_take_the_steps_of_one(tmp_path):
    # Without batch norm, a batch split over processes gives the same gradient.
    arguments = ["-m", "mhe_classification.train", "--data", "digits", "--batch-size", "8"]
    arguments += ["--model", "vit_tiny_patch16_224", "--steps", "3", "--log-every", "1"]
    arguments += ["--device", "cpu", "--regularizer", "mhe", "--output"]
    run_python(*arguments, tmp_path / "one")
    run_processes(2, *arguments, tmp_path / "two")
    one, two = (records(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        # crops are drawn per process, so the images differ; the energies of the first step do not
        assert b["loss"] == pytest.approx(a["loss"], rel=0.05)
    assert two[0]["penalty"] == pytest.approx(one[0]["penalty"], rel=1e-6)
    for run in (one, two):  # they did take steps, which lower the energies
        assert run[2]["penalty"] < run[1]["penalty"] < run[0]["penalty"]
    assert round(two[-1]["test_error"] * 360, 6).is_integer()
