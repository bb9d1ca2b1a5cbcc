"""``sphereface-plus compare``: margins or heads × regularizers × seeds, a table and curves."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mhe_core.errors import UserError
from mhe_core.training.command import parse, run_command
from mhe_core.training.compare import (
    Column,
    Comparison,
    comma_separated,
    common_columns,
    compare_runs,
    loaded_once,
    paired_difference,
    seeds_of,
    shown_difference,
    values,
    write_table,
)
from mhe_core.training.files import write_atomically
from mhe_core.training.naming import asked_for
from mhe_core.training.plots import Panel, plot_curves
from mhe_core.training.processes import make_accelerator

from sphereface_plus.config import FaceConfig
from sphereface_plus.data import load_faces
from sphereface_plus.train import prepare, train

__all__ = ["CompareConfig", "compare", "main"]

COLUMNS = (
    Column("test_accuracy", "verification accuracy, %", scale=100),
    Column("test_eer", "EER, %", scale=100),
    Column("validation_accuracy", "validation accuracy, %", scale=100),
    Column("class_angle", "smallest class angle, °", digits=1),
    Column("class_energy", "class energy", digits=4),
    Column("step_seconds", "seconds a step", digits=3),
)
PANELS = (
    Panel("margin_loss", "loss without penalty", log=True),
    Panel("test_accuracy", "verification accuracy, %", scale=100),
    Panel("class_angle", "smallest class angle, °"),
)


@dataclass(kw_only=True)
class CompareConfig(FaceConfig):
    """Train every margin or head with every regularizer and seed; other flags are those of train.

    Attributes:
        output: the folder of the runs, the table and the curves.
        margins: which m, with commas between; default: 1,2,3,4.
        heads: in place of margins, which heads, with commas between; each has the margin that was
            published for it, unless --margin gives one.
        regularizers: which, with commas between; the others are compared with the first.
        seeds: which, with commas between.
    """

    output: Path = Path("runs/compare")
    margins: str | None = None
    heads: str | None = None
    regularizers: str = field(default_factory=lambda: f"none,{asked_for('mhe')}")
    seeds: str = "0,1,2"

    def _settle_head(self) -> None:
        """Margin and scale are those of each head, which compare goes through."""
        if self.heads is None:
            super()._settle_head()


def compare(config: CompareConfig) -> str:
    """Train what is not yet trained; write table.md, table.json, differences.md and curves.png.

    Returns:
        The tables as Markdown.
    """
    given = {field.name: getattr(config, field.name) for field in fields(FaceConfig)}
    losses = compared_losses(config)
    regularizers = comma_separated(config.regularizers)
    methods = {
        label(loss, name): FaceConfig(**{**given, **settings, "regularizer": name})
        for loss, settings in losses.items()
        for name in regularizers
    }
    seeds = seeds_of(config.seeds)
    load = loaded_once(load_faces)
    comparison = compare_runs(
        lambda run: train(run, load),
        methods,
        seeds,
        config.output,
        check=lambda run: prepare(run, make_accelerator(run.device, run.amp), load),
    )
    table = write_table(comparison, COLUMNS, config.output)
    if len(regularizers) > 1:
        differences = difference_table(comparison, list(losses), regularizers)
        write_atomically(config.output / "differences.md", differences)
        table += "\n" + differences
    picture = plot_curves(comparison, PANELS, config.output / "curves.png")
    print(f"\n{table}\nCurves: {picture}")
    return table


def compared_losses(config: CompareConfig) -> dict[str, dict[str, Any]]:
    """The settings of each margin, or of each head, by the name of its folder."""
    if config.heads is None:
        margins = map(float, comma_separated(config.margins or "1,2,3,4"))
        return {f"m{margin:g}": {"margin": margin} for margin in margins}
    if config.margins is not None:
        raise UserError(
            f"expected --margins or --heads, got both ({config.margins} and {config.heads})"
        )
    return {head: {"head": head} for head in comma_separated(config.heads)}


def label(loss: str, regularizer: str) -> str:
    """A method's name, and that of its folder."""
    return loss if regularizer == "none" else f"{loss}-{regularizer}"


def difference_table(
    comparison: Comparison, losses: Sequence[str], regularizers: Sequence[str]
) -> str:
    """With each loss, what each regularizer changes: the mean over seeds and its 95 % interval."""
    first, *others = regularizers
    columns = common_columns(comparison, COLUMNS[:-1])
    titles = ["paired difference", *(column.title for column in columns)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for loss in losses:
        baseline = comparison.summaries[label(loss, first)]
        for name in others:
            runs = comparison.summaries[label(loss, name)]
            cells = [
                shown_difference(
                    paired_difference(values(runs, column), values(baseline, column)),
                    column.digits,
                )
                for column in columns
            ]
            lines.append(f"| {loss}, {name} minus {first} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    compare(parse(CompareConfig, arguments, "sphereface-plus compare"))


if __name__ == "__main__":
    sys.exit(run_command("sphereface-plus compare", main, sys.argv[1:]))
