"""``mhe-gan compare``: the four published models × seeds, a table, samples and curves."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from mhe_core.errors import UserError
from mhe_core.plotting import drawing
from mhe_core.training.command import parse, run_command
from mhe_core.training.compare import (
    Column,
    Comparison,
    comma_separated,
    compare_runs,
    loaded_once,
    seeds_of,
    write_table,
)
from mhe_core.training.plots import Panel, plot_curves
from mhe_core.training.processes import make_accelerator
from PIL import Image

from mhe_gan.config import GANConfig, ScoreConfig
from mhe_gan.data import load_split
from mhe_gan.scores import Scorer
from mhe_gan.test import TestConfig, build_scorer, described, score_run
from mhe_gan.train import prepare, train

__all__ = ["MODELS", "CompareConfig", "compare", "main", "plot_samples"]

MODELS: dict[str, dict[str, Any]] = {
    "baseline": {"spectral_norm": False, "regularizer": "none"},
    "sn": {"spectral_norm": True, "regularizer": "none"},
    "mhe": {"spectral_norm": False},
    "mhe+sn": {"spectral_norm": True},
}
COLUMNS = (
    Column("inception_score", "score"),
    Column("fid", "FID"),
    Column("kid", "KID × 1000", scale=1000),
    Column("discriminator_energy", "energy", digits=4),
    Column("discriminator_above_floor", "above its floor", digits=4),
    Column("largest_singular_value", "largest singular value"),
    Column("step_seconds", "seconds a step", digits=3),
)
PANELS = (
    Panel("inception_score", "score"),
    Panel("fid", "FID"),
    Panel("discriminator_loss", "discriminator's loss"),
    Panel("discriminator_above_floor", "discriminator's energy above its floor"),
)


@dataclass(kw_only=True)
class CompareConfig(GANConfig):
    """Train the published models with every seed and compare; the flags are those of train.

    Attributes:
        output: the folder of the runs, the table, the samples and the curves.
        models: which of baseline, sn, mhe, mhe+sn, with commas between; the first is the one
            compared with.
        seeds: which, with commas between.
    """

    output: Path = Path("runs/compare")
    models: str = "baseline,sn,mhe,mhe+sn"
    seeds: str = "0,1"

    def __post_init__(self) -> None:
        """Check, and leave the energy's weight to each model."""
        given = self.hidden_weight
        super().__post_init__()
        self.hidden_weight = given
        if unknown := sorted(set(comma_separated(self.models)) - set(MODELS)):
            raise UserError(f"expected --models of {', '.join(MODELS)}, got {', '.join(unknown)}")


def compare(config: CompareConfig) -> str:
    """Train and score what is not yet, and write table.md, table.json, samples.png, curves.png.

    Returns:
        The table as Markdown.
    """
    settings = {field.name: getattr(config, field.name) for field in fields(GANConfig)}
    methods = {
        name: GANConfig(**{**settings, **MODELS[name]}) for name in comma_separated(config.models)
    }
    seeds = seeds_of(config.seeds)
    device = make_accelerator(config.device, config.amp).device
    scorer = build_scorer(next(iter(methods.values())), device)

    load = loaded_once(load_split)

    def train_and_score(run: GANConfig) -> dict[str, Any]:
        summary = train(run, scorer, load)
        return {**summary, **final_scores(run, scorer, summary["steps"])}

    comparison = compare_runs(
        train_and_score,
        methods,
        seeds,
        config.output,
        check=lambda run: prepare(run, make_accelerator(run.device, run.amp), scorer, load),
    )
    table = write_table(comparison, COLUMNS, config.output)
    plot_samples(comparison, config.output / "samples.png")
    plot_curves(comparison, PANELS, config.output / "curves.png")
    print(f"\n{table}")
    if scorer.real_score is not None:
        print(f"Score of the real images: {scorer.real_score:.2f}")
    print(f"Samples and curves: {config.output}/samples.png, curves.png")
    return table


def final_scores(run: GANConfig, scorer: Scorer, steps: int) -> dict[str, Any]:
    """The scores of a run that is complete after so many steps.

    Those of its best checkpoint have names that begin so.
    """
    config = TestConfig(
        run=run.output,
        device=run.device,
        **{field.name: getattr(run, field.name) for field in fields(ScoreConfig)},
    )
    file = run.output / "test.json"
    report = json.loads(file.read_text()) if file.exists() else {}
    made_alike = described(config, scorer).items() <= report.items()
    if not made_alike or report["final"]["step"] != steps:
        report = score_run(config, scorer)
    best = {f"best_{name}": value for name, value in report.get("best", {}).items()}
    return {**report["final"], **best}


def plot_samples(comparison: Comparison, file: Path) -> None:
    """Draw each model's last grid of samples side by side, of its first run that did not diverge.

    With the same seed, they are of the same noises.
    """
    grids = {
        label: Image.open(max((paths[0] / "samples").glob("step*.png")))
        for label, paths in comparison.paths.items()
        if paths
    }
    if not grids:
        return
    height = max(grid.height for grid in grids.values())
    with drawing(file, len(grids) * height / 90, height / 90 + 0.3) as figure:
        axes = figure.subplots(1, len(grids), squeeze=False)[0]
        for axis, (label, grid) in zip(axes, grids.items(), strict=True):
            axis.imshow(np.asarray(grid), interpolation="nearest")
            axis.set_title(label, fontsize=10)
            axis.set_axis_off()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    compare(parse(CompareConfig, arguments, "mhe-gan compare"))


if __name__ == "__main__":
    sys.exit(run_command("mhe-gan compare", main, sys.argv[1:]))
