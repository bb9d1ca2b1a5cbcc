"""Run directory, checkpoints, comparison tables."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
import yaml
from mhe_core.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from mhe_core.training.command import parse
from mhe_core.training.compare import Column, comma_separated, compare_runs, write_table
from mhe_core.training.config import TrainingConfig
from mhe_core.training.loop import TrainingDiverged
from mhe_core.training.run import Run, RunError, read_config, saved_config


def config(path, **changes):
    return TrainingConfig(output=path, **changes)


def started(settings):
    """A run whose directory is looked at, and then claimed, as by its first step."""
    run = Run(settings)
    run.open()
    run.claim()
    run.close()
    return run


def test_config_yaml_is_the_resolved_configuration(tmp_path):
    started(config(tmp_path / "run", lr=0.3, regularizer_options={"s": 1}))
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert saved["lr"] == 0.3
    assert saved["regularizer_options"] == {"s": 1}
    assert read_config(tmp_path / "run") == saved


def test_a_second_run_in_the_same_place_is_refused(tmp_path):
    started(config(tmp_path))
    with pytest.raises(RunError, match="--resume"):
        started(config(tmp_path))


def test_resuming_with_other_settings_names_them(tmp_path):
    started(config(tmp_path))
    with pytest.raises(RunError, match=r"--lr was 0\.1, is 0\.2"):
        started(config(tmp_path, lr=0.2, resume=True))
    started(config(tmp_path, workers=3, device="cpu", resume=True))


def test_of_two_that_start_in_one_place_the_second_is_refused(tmp_path):
    first, second = (Run(config(tmp_path / "run")) for _ in range(2))
    assert first.open() is second.open() is None
    first.claim()
    with pytest.raises(RunError, match="in use"):
        second.claim()
    first.close()
    with pytest.raises(RunError, match="another run was started"):
        second.claim()
    second.close()


def test_a_run_from_before_a_setting_was_there_has_its_default(tmp_path):
    started(Example(output=tmp_path))
    file = tmp_path / "config.yaml"
    file.write_text(file.read_text().replace("long_name: 3\n", ""))
    assert Run(Example(output=tmp_path, resume=True)).look() is None
    with pytest.raises(RunError, match="--long-name was 3, is 4"):
        Run(Example(output=tmp_path, resume=True, long_name=4)).look()


def test_another_programs_run_is_refused(tmp_path):
    started(Example(output=tmp_path))
    with pytest.raises(RunError, match=r"another program's run: its config\.yaml has long_name"):
        saved_config(TrainingConfig, tmp_path)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(RunError, match="cannot be read"):
        saved_config(TrainingConfig, tmp_path)


def test_records_after_a_step_and_half_lines_are_forgotten(tmp_path):
    run = started(config(tmp_path))
    for step in (1, 2, 3):
        run.log({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    run.forget_after(2)
    assert run.metrics() == [{"step": 1}, {"step": 2}]


def test_a_checkpoint_is_plain_and_comes_back(tmp_path):
    content = {"step": 3, "state": {"w": torch.randn(2)}, "note": "x", "numbers": [1.5, None]}
    save_checkpoint(tmp_path / "last", content)
    assert torch.equal(load_checkpoint(tmp_path / "last")["state"]["w"], content["state"]["w"])
    assert torch.load(tmp_path / "last", weights_only=True)["numbers"] == [1.5, None]


@pytest.mark.parametrize("length", [0, 10, 300])
def test_a_truncated_checkpoint_is_refused_and_the_one_before_named(tmp_path, length):
    for step in (1, 2):
        save_checkpoint(tmp_path / "last", {"step": step}, keep_previous=True)
    (tmp_path / "last").write_bytes((tmp_path / "last").read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"last is truncated.*previous"):
        load_checkpoint(tmp_path / "last")
    assert load_checkpoint(tmp_path / "previous")["step"] == 1


def test_a_foreign_checkpoint_is_refused(tmp_path):
    torch.save({"model": torch.zeros(1)}, tmp_path / "last")
    with pytest.raises(CheckpointError, match="format"):
        load_checkpoint(tmp_path / "last")


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran code from a checkpoint')",))


def test_a_checkpoint_runs_no_code(tmp_path):
    torch.save({"format": Payload()}, tmp_path / "last")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "last")


@dataclass(kw_only=True)
class Example(TrainingConfig):
    """An example.

    Attributes:
        long_name: a number.
    """

    long_name: int = 3


def test_flags_have_dashes_and_override_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("lr: 0.5\nlong_name: 7\nregularizer_options: {s: 1}\n")
    arguments = ["--output", str(tmp_path), "--config", str(file), "--lr", "0.25", "--resume"]
    arguments += ["--regularizer-options", "s=0", "distance=angular", "--steps", "5"]
    found = parse(Example, arguments, "example")
    assert (found.lr, found.long_name, found.steps, found.resume) == (0.25, 7, 5, True)
    assert found.regularizer_options == {"s": 0, "distance": "angular"}


def test_resume_takes_up_the_runs_own_settings(tmp_path):
    started(parse(Example, ["--output", str(tmp_path), "--long-name", "9"], "example"))
    found = parse(Example, ["--output", str(tmp_path), "--resume", "--workers", "2"], "example")
    assert (found.long_name, found.workers) == (9, 2)
    started(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "--batch-size above 0, got 0"),
        (["--steps", "3", "--epochs", "1"], "--steps or --epochs"),
        (["--long-name", "x"], "long_name"),
        (["--bogus", "1"], "--bogus"),
        (["--amp", "int8"], "amp"),
    ],
)
def test_bad_settings_end_with_a_message(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        parse(Example, ["--output", str(tmp_path / "run"), *arguments], "example")
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_print_config_is_yaml_that_can_be_given_back(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(Example, ["--output", str(tmp_path), "--lr", "0.3", "--print_config"], "example")
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["lr"] == 0.3
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(printed))
    assert parse(Example, ["--config", str(file)], "example").lr == 0.3


def test_compare_has_means_deviations_and_paired_intervals(tmp_path):
    figures = {("a", 0): 3.0, ("a", 1): 5.0, ("a", 2): 4.0}
    figures |= {("b", 0): 2.0, ("b", 1): 4.5, ("b", 2): 2.5}

    def train(config):
        return {"error": figures[(config.regularizer, config.seed)] / 100}

    base = config(tmp_path)
    methods = {name: replace(base, regularizer=name) for name in ("a", "b")}
    comparison = compare_runs(train, methods, (0, 1, 2), tmp_path)
    columns = [Column("error", "error, %", scale=100), Column("absent", "not there")]
    table = write_table(comparison, columns, tmp_path)
    # differences −1, −0.5, −1.5: mean −1, sd 0.5, t(0.975, 2) = 4.3027, half-width 1.2421
    assert "| b | 3.00 ± 1.32 | -1.00 (-2.24 to +0.24) |" in table
    assert "| a | 4.00 ± 1.00 | – |" in table
    assert "not there" not in table
    content = json.loads((tmp_path / "table.json").read_text())
    assert math.isclose(content["methods"]["b"]["difference"]["mean"], -1)
    assert [run["error"] for run in content["methods"]["a"]["runs"]] == [0.03, 0.05, 0.04]


def test_compare_goes_on_where_a_run_diverges(tmp_path, capsys):
    def train(config):
        if config.regularizer == "a" and config.seed == 1:
            raise TrainingDiverged("loss not finite at step 7")
        return {"error": 0.5 + config.seed / 10}

    methods = {name: replace(config(tmp_path), regularizer=name) for name in ("a", "b")}
    comparison = compare_runs(train, methods, (0, 1), tmp_path)
    assert "a, seed 1, diverged: loss not finite at step 7" in capsys.readouterr().out
    assert [len(comparison.paths[name]) for name in ("a", "b")] == [1, 2]
    table = write_table(comparison, [Column("error", "error")], tmp_path)
    assert "| a | diverged | – |" in table
    assert "| b | 0.55 ± 0.07 | – |" in table
    content = json.loads((tmp_path / "table.json").read_text())["methods"]
    assert content["a"]["runs"][1]["diverged"]
    assert content["a"]["error"]["mean"] is None


@pytest.mark.parametrize("text", ["", "a,,b", "a,a"])
def test_lists_with_gaps_or_repeats_are_refused(text):
    with pytest.raises(ValueError, match="commas"):
        comma_separated(text)
