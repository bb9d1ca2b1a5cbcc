"""The matrix of what training with one regularizer does to the measures of all others."""

import json
import math
import runpy
import sys
from pathlib import Path

import mhe_classification
import pytest
import torch
from mhe_classification.config import ClassificationConfig
from mhe_classification.train import train

SCRIPT = Path(__file__).parents[2] / "packages/uniformity/benchmarks/matrix.py"
TINY = {"width": 0.0625, "image_size": 8, "batch_size": 32, "steps": 4, "lr": 0.1, "device": "cpu"}


def test_shares_are_those_of_values_computed_by_hand(tmp_path, monkeypatch, capsys):
    runs = tmp_path / "runs"
    for method in ("none", "so", "mhs"):
        for seed in (0, 1):
            output = runs / method / f"seed{seed}"
            settings = {"hidden_weight": 1.0} if method != "none" else {}
            train(
                ClassificationConfig(
                    output=output, regularizer=method, seed=seed, **settings, **TINY
                )
            )
    monkeypatch.setattr(sys, "argv", ["matrix", str(runs), "--output", str(tmp_path / "found")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "trained with" in capsys.readouterr().out
    rows = json.loads((tmp_path / "found/matrix.json").read_text())
    assert list(rows) == ["none", "mhs", "so"]

    def orthogonality(method, seed):
        network = mhe_classification.load(runs / method / f"seed{seed}", "last").network
        layers = [m.weight.flatten(1) for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
        grams = [w @ w.T - torch.eye(len(w)) for w in layers[:-1]]  # the last is the output layer
        return torch.stack([gram.square().sum() for gram in grams]).mean().item()

    values = {method: [orthogonality(method, seed) for seed in (0, 1)] for method in rows}
    changes = {m: sum(values[m]) / 2 - sum(values["none"]) / 2 for m in rows}
    assert changes["so"] < 0
    for method, row in rows.items():
        assert row["so"]["mean"] == pytest.approx(sum(values[method]) / 2, rel=1e-5)
        share = changes[method] / min(changes.values())
        assert row["so"]["share"] == pytest.approx(share, abs=1e-3)
    assert rows["so"]["so"]["share"] == 1
    assert all(figures["share"] == 0 for figures in rows["none"].values())
    low, mean, high = (rows["so"]["so"]["difference"][k] for k in ("low", "mean", "high"))
    half = (
        12.706 * abs(values["so"][0] - values["none"][0] - values["so"][1] + values["none"][1]) / 2
    )
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=1e-2)
    assert math.isfinite(half)
    assert (tmp_path / "found/matrix.png").read_bytes().startswith(b"\x89PNG")
