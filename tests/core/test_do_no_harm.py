"""The script that trains timm's models with and without the default regularizer."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from support.programs import run_program

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "packages/core/benchmarks/do_no_harm.py"


def test_small_models_of_three_families_train_as_without(tmp_path):
    output = tmp_path / "found.jsonl"
    models = ["--models", "test_vit", "test_resnet", "test_efficientnet"]
    printed = run_program(sys.executable, SCRIPT, "--output", output, *models).stdout
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert {r["model"] for r in records} == set(models[1:])
    assert {r["optimizer"] for r in records} == {"adamw", "sgd"}
    assert all(r["with"] <= 1.1 * r["without"] + 0.05 for r in records)
    assert "6 of 6 trials of 3 families pass." in printed
    again = run_program(sys.executable, SCRIPT, "--output", output, *models).stdout
    assert again == printed[printed.index("| model") :]


@pytest.mark.parametrize(
    ("without", "status", "said"),
    [
        ([2.0, 2.0], 0, ["2 of 2 trials"]),
        ([2.0, 1.0], 1, ["1 of 2 trials", "| worse |"]),
        ([2.0, math.nan], 0, ["1 of 1 trials", "1 more say nothing", "| not finite without |"]),
        ([2.0, math.inf], 0, ["1 of 1 trials", "1 more say nothing"]),
        ([math.nan, math.nan], 1, ["0 of 0 trials", "2 more say nothing"]),
    ],
    ids=str,
)
def test_what_does_not_train_without_is_counted_apart(tmp_path, without, status, said):
    output = tmp_path / "found.jsonl"
    with output.open("w") as file:
        for k, loss in enumerate(without):
            losses = {"before": 2.3, "without": loss, "with": 2.0, "passes": loss != 1.0}
            size = {"parameters": 1000, "image_size": 64, "optimizer": "sgd"}
            file.write(json.dumps({"family": f"f{k}", "model": "m", **size, **losses}) + "\n")
    command = (sys.executable, SCRIPT, "--table", "--output", output)
    printed = run_program(*command, status=status).stdout
    assert all(part in printed for part in said)


def test_what_was_worse_is_shown_beside_the_same_from_starts_next_to_it(tmp_path):
    output = tmp_path / "found.jsonl"
    trial = {"family": "f", "model": "test_resnet", "optimizer": "sgd"}
    losses = {"before": 2.3, "without": 1.0, "with": 2.0, "passes": False}
    sizes = {"parameters": 1000, "image_size": 64}
    output.write_text(json.dumps({**trial, **losses, **sizes}) + "\n")
    command = (sys.executable, SCRIPT, "--again", "--output", output)
    printed = run_program(*command, status=1).stdout
    _, found = map(json.loads, output.read_text().splitlines())
    pairs = found["moved"]
    assert len({without for without, _ in pairs}) == len(pairs) == 5
    assert all(other <= 1.1 * without + 0.05 for without, other in pairs)
    assert "| worse; from 5 starts beside: " in printed
    assert "0 of 1 trials of 1 families pass." in printed
    before = output.read_text()
    run_program(*command, status=1)
    assert output.read_text() == before
