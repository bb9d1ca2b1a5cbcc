"""``mhe-classification compare``: regularizers × seeds, a table and curves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mhe_core.training.checkpoint import load_checkpoint
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
from mhe_core.training.naming import asked_for
from mhe_core.training.plots import Panel, plot_against, plot_curves
from mhe_core.training.processes import make_accelerator
from mhe_core.training.published import all_regularizers, published_settings
from mhe_core.training.run import saved_config
from torch import nn

from mhe_classification.angles import plot_angles
from mhe_classification.classifier import load
from mhe_classification.config import ClassificationConfig
from mhe_classification.data import Splits, load_splits
from mhe_classification.initial import new_model
from mhe_classification.train import prepare, train

__all__ = ["CompareConfig", "compare", "main"]

COLUMNS = (
    Column("validation_error", "validation error, %", scale=100),
    Column("test_error", "test error, %", scale=100),
    Column("hidden_energy", "hidden energy", digits=4),
    Column("hidden_above_floor", "hidden above floor", digits=4),
    Column("output_energy", "output energy", digits=4),
    Column("output_above_floor", "output above floor", digits=4),
    Column("step_seconds", "seconds a step", digits=3),
)
ENERGY_PANELS = (
    Panel("hidden_above_floor", "hidden energy above its floor", log=True),
    Panel("output_above_floor", "output energy above its floor", log=True),
)


@dataclass(kw_only=True)
class CompareConfig(ClassificationConfig):
    """Train every regularizer with every seed and compare; the flags are those of train.

    Attributes:
        output: the folder of the runs, the table and the curves.
        regularizers: which, with commas between; the first is the one compared with. "all" stands
            for none and all that are installed.
        hidden_weight: of all regularizers; default: the weight that each was published with, or 1
            where it names none.
        output_weight: of all regularizers; default: the published one, or 10.
        output_regularizer: of the output layer; default: the method's own where it was published
            for this layer, too, with the published options, else mhe.
        seeds: which, with commas between.
        lrs: learning rates, with commas between, in place of --lr: one comparison for each, and a
            picture of the test error against them.
    """

    output: Path = Path("runs/compare")
    regularizers: str = field(
        default_factory=lambda: ",".join(["none", asked_for("mhe"), asked_for("half_mhe")])
    )
    hidden_weight: float | None = None  # type: ignore[assignment]  # until a method has set it
    output_weight: float | None = None  # type: ignore[assignment]
    output_regularizer: str | None = None  # type: ignore[assignment]
    seeds: str = "0,1,2"
    lrs: str | None = None


def compare(
    config: CompareConfig, load: Callable[[ClassificationConfig], Splits] | None = None
) -> Comparison:
    """Train what is not yet trained, and write table.md, table.json and pictures."""
    every = config.regularizers == "all"
    names = ["none", *all_regularizers()] if every else comma_separated(config.regularizers)
    methods = {name: method_config(config, name) for name in names}
    seeds = seeds_of(config.seeds)
    load = load or loaded_once(load_splits)
    comparison = compare_runs(
        lambda run: train(run, load),
        methods,
        seeds,
        config.output,
        check=lambda run: prepare(run, make_accelerator(run.device, run.amp), load),
    )
    table = write_table(comparison, COLUMNS, config.output)
    panels = (error_panel(config), *ENERGY_PANELS)
    picture = plot_curves(comparison, panels, config.output / "curves.png")
    print(f"\n{table}\nCurves: {picture}")
    if any(comparison.paths.values()):
        print(f"Angles: {plot_angles(networks(comparison), config.output / 'angles.png')}")
    return comparison


def method_config(config: CompareConfig, regularizer: str) -> ClassificationConfig:
    """The settings of one method's runs: those given, then those published, then train's."""
    given = {field.name: getattr(config, field.name) for field in fields(ClassificationConfig)}
    chosen = {name: value for name, value in given.items() if value is not None}
    published = published_settings(regularizer)
    if config.output_regularizer is not None or config.output_options:
        published = {k: v for k, v in published.items() if not k.startswith("output_")}
    elif "output_options" in published:
        del chosen["output_options"]
    return ClassificationConfig(**{**published, **chosen, "regularizer": regularizer})


def compare_learning_rates(config: CompareConfig, lrs: Sequence[float]) -> None:
    """Compare at each learning rate, in a folder of its own, and draw the errors against them."""
    load = loaded_once(load_splits)
    comparisons = {
        lr: compare(replace(config, lr=lr, output=config.output / f"lr{lr:g}"), load) for lr in lrs
    }
    labels = next(iter(comparisons.values())).summaries
    methods: dict[str, dict[float | None, Sequence[Mapping[str, Any]]]] = {
        label: {lr: found.summaries[label] for lr, found in comparisons.items()} for label in labels
    }
    file = config.output / "learning_rates.png"
    print(f"Errors: {plot_against('learning rate', methods, [error_panel(config)], file)}")


def error_panel(config: CompareConfig) -> Panel:
    """The error that methods are compared by: on held-out training images, if there are any."""
    images = "validation" if config.validation_fraction else "test"
    return Panel(f"{images}_error", f"{images} error, %", scale=100)


def networks(comparison: Comparison) -> dict[str, nn.Module]:
    """A network before training, and after, by method: of the first seed that did not diverge."""
    runs = {label: paths[0] for label, paths in comparison.paths.items() if paths}
    trained = {label: load(path, "last").network for label, path in runs.items()}
    first = next(iter(runs.values()))
    facts = load_checkpoint(first / "checkpoints" / "last")["facts"]
    config = saved_config(ClassificationConfig, first)
    untrained = new_model(config, facts["classes"], facts["image_size"])
    return {"before training": untrained, **trained}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(CompareConfig, arguments, "mhe-classification compare")
    if config.lrs is None:
        compare(config)
    else:
        compare_learning_rates(config, positive_numbers(config.lrs, "--lrs"))


if __name__ == "__main__":
    sys.exit(run_command("mhe-classification compare", main, sys.argv[1:]))
