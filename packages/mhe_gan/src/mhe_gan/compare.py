"""``mhe-gan compare``: the four published models × weights × seeds, a table and pictures."""

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
    positive_numbers,
    seeds_of,
    write_table,
)
from mhe_core.training.plots import Panel, plot_against, plot_curves
from mhe_core.training.processes import make_accelerator
from PIL import Image

from mhe_gan.config import GANConfig, ScoreConfig
from mhe_gan.data import load_split
from mhe_gan.metrics import find_metric
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
ENERGY_PANEL = Panel("discriminator_above_floor", "discriminator's energy above its floor")
PANELS = (
    Panel("inception_score", "score"),
    Panel("fid", "FID"),
    Panel("discriminator_loss", "discriminator's loss"),
    ENERGY_PANEL,
)


@dataclass(kw_only=True)
class CompareConfig(GANConfig):
    """Train the published models with every seed and compare; the flags are those of train.

    Attributes:
        output: the folder of the runs, the table, the samples and the curves.
        models: which of baseline, sn, mhe, mhe+sn, with commas between; the first is the one
            compared with.
        hidden_weights: weights of each layer's energy, with commas between, in place of
            --hidden-weight: each model with MHE is trained with each of them, and there is a
            picture of the score and the energy against them.
        seeds: which, with commas between.
    """

    output: Path = Path("runs/compare")
    models: str = "baseline,sn,mhe,mhe+sn"
    hidden_weights: str | None = None
    seeds: str = "0,1"

    def __post_init__(self) -> None:
        """Check, and leave the energy's weight to each model."""
        given = self.hidden_weight
        super().__post_init__()
        self.hidden_weight = given
        if unknown := sorted(set(comma_separated(self.models)) - set(MODELS)):
            raise UserError(f"expected --models of {', '.join(MODELS)}, got {', '.join(unknown)}")
        if self.hidden_weights is None:
            return
        positive_numbers(self.hidden_weights, "--hidden-weights")
        if given is not None:
            raise UserError("expected --hidden-weight or --hidden-weights, got both")
        if self.regularizer == "none" or not any(map(has_energy, comma_separated(self.models))):
            raise UserError(
                f"expected --models with MHE, mhe or mhe+sn, and a --regularizer with "
                f"--hidden-weights, got --models {self.models} and --regularizer "
                f"{self.regularizer}"
            )

    def energy_weights(self, model: str) -> dict[str, float | None]:
        """The weights that a model is trained with, by the label of each; None: its own."""
        if self.hidden_weights is None or not has_energy(model):
            return {model: self.hidden_weight}
        found = positive_numbers(self.hidden_weights, "--hidden-weights")
        return {f"{model}, weight {weight:g}": weight for weight in found}

    def method(self, model: str, weight: float | None) -> GANConfig:
        """The settings of a model's runs with that weight."""
        settings = {field.name: getattr(self, field.name) for field in fields(GANConfig)}
        return GANConfig(**{**settings, **MODELS[model], "hidden_weight": weight})


def has_energy(model: str) -> bool:
    """Whether a model is one with MHE."""
    return "regularizer" not in MODELS[model]


def compare(config: CompareConfig) -> str:
    """Train and score what is not yet, and write table.md, table.json and the pictures.

    These are samples.png, curves.png and, with several weights, weights.png.

    Returns:
        The table as Markdown.
    """
    weights = {model: config.energy_weights(model) for model in comma_separated(config.models)}
    methods = {
        label: config.method(model, weight)
        for model, weight_of in weights.items()
        for label, weight in weight_of.items()
    }
    seeds = seeds_of(config.seeds)
    device = make_accelerator(config.device, config.amp).device
    load = loaded_once(load_split)
    scorer = build_scorer(next(iter(methods.values())), device, load=load)

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
    pictures = "samples.png, curves.png"
    if config.hidden_weights is not None:
        runs = {
            model: {weight: comparison.summaries[label] for label, weight in weight_of.items()}
            for model, weight_of in weights.items()
        }
        panels = (score_panel(config), ENERGY_PANEL)
        plot_against("weight of the energy", runs, panels, config.output / "weights.png")
        pictures += ", weights.png"
    print(f"\n{table}")
    if scorer.real_score is not None:
        print(f"Score of the real images: {scorer.real_score:.2f}")
    print(f"Samples and curves: {config.output}/{pictures}")
    return table


def score_panel(config: GANConfig) -> Panel:
    """The score that runs are compared by: what chose checkpoints, or FID where none did."""
    name = "fid" if config.score_every is None else find_metric(config.best_by).name
    columns = {column.key: column for column in COLUMNS}
    column = columns.get(name, Column(name, name))
    return Panel(name, column.title, column.scale)


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
    made_alike &= "samples_of_class" in report  # once they were equally frequent
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
