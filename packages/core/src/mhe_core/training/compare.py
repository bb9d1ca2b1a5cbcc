"""Methods × seeds: train each, and set their final figures side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from mhe_core.errors import UserError
from mhe_core.training.config import TrainingConfig
from mhe_core.training.files import write_atomically
from mhe_core.training.loop import TrainingDiverged, TrainingInterrupted
from mhe_core.training.run import Run, RunError

__all__ = [
    "Column",
    "Comparison",
    "comma_separated",
    "common_columns",
    "compare_runs",
    "loaded_once",
    "positive_numbers",
    "seeds_of",
    "write_table",
]

C = TypeVar("C", bound=TrainingConfig)
T = TypeVar("T")


@dataclass(frozen=True)
class Column:
    """A figure of summary.json in the table: its key, its title, its unit and its digits."""

    key: str
    title: str
    scale: float = 1.0
    digits: int = 2


@dataclass(frozen=True)
class Comparison:
    """The runs of each method: the directories of those that ended, and a summary for each seed.

    Of a run that diverged, the summary has the seed and, as ``diverged``, the message.
    """

    seeds: tuple[int, ...]
    paths: Mapping[str, tuple[Path, ...]]
    summaries: Mapping[str, tuple[dict[str, Any], ...]]


def compare_runs(
    train: Callable[[C], dict[str, Any]],
    methods: Mapping[str, C],
    seeds: Sequence[int],
    output: Path,
    check: Callable[[C], object] | None = None,
) -> Comparison:
    """Train every method with every seed; complete runs are kept, others continued.

    That a run diverges is a result, too, and does not keep the others from being trained. What
    can be known to be wrong before is found before the first run is started.

    Args:
        train: trains one run and returns its summary.
        methods: the settings of each method, by its label.
        seeds: a seed stands for the same initial weights and batches in every method.
        output: runs go to ``output/LABEL/seedN``.
        check: builds what a method's run needs, for each that has a run to be trained.

    Raises:
        RunError: if a folder holds a run with other settings.
    """
    for label, config in methods.items():
        folder = Path(output) / label
        check_runs([replace(config, seed=s, output=folder / f"seed{s}") for s in seeds], check)
    paths: dict[str, list[Path]] = {label: [] for label in methods}
    summaries: dict[str, list[dict[str, Any]]] = {label: [] for label in methods}
    total, number = len(methods) * len(seeds), 0
    for seed in seeds:  # seed by seed, so that an early look is a fair one
        for label, config in methods.items():
            number += 1
            path = Path(output) / label / f"seed{seed}"
            print(f"[{number}/{total}] {label}, seed {seed}: {path}", flush=True)
            try:
                summary = train(replace(config, seed=seed, output=path, resume=True))
                paths[label].append(path)
            except TrainingDiverged as error:
                print(f"{label}, seed {seed}, diverged: {error}", flush=True)
                summary = {"seed": seed, "diverged": str(error)}
            except TrainingInterrupted as stopped:
                message = f"stopped in {path}: give the same command again to go on"
                raise TrainingInterrupted(message, stopped.number) from None
            summaries[label].append(summary)
    return Comparison(
        tuple(seeds),
        {label: tuple(found) for label, found in paths.items()},
        {label: tuple(found) for label, found in summaries.items()},
    )


def loaded_once(load: Callable[[C], T]) -> Callable[[C], T]:
    """``load`` for runs that differ in nothing that it reads: called for the first that asks."""
    found: list[T] = []

    def loaded(config: C) -> T:
        if not found:
            found.append(load(config))
        return found[0]

    return loaded


def check_runs(configs: Sequence[C], check: Callable[[C], object] | None) -> None:
    """Look whether a method's runs can be trained or continued, and check the first to be trained.

    Raises:
        RunError: if a folder holds another run, or a complete one for fewer steps.
    """
    todo = []
    for config in configs:
        asked = replace(config, resume=True)
        run = Run(asked)
        if run.look() is not None:
            continue
        if run.summary is not None and not config.resume:
            raise RunError(
                f"the run in {run.path} is complete after {run.summary['steps']} steps: give "
                "--resume to train it longer, or another --output"
            )
        todo.append(asked)
    if todo and check is not None:
        check(todo[0])


def write_table(comparison: Comparison, columns: Sequence[Column], output: Path) -> str:
    """Write ``table.md`` and ``table.json``; returns the table as Markdown.

    Each cell is mean ± standard deviation over seeds. The first column is also compared with the
    first method, seed by seed: mean difference and its 95 % interval (Student's t, paired). A
    figure that not every run has is left out; a run that diverged has none.
    """
    columns = common_columns(comparison, columns)
    rows = {
        label: {column.key: spread(values(runs, column)) for column in columns}
        for label, runs in comparison.summaries.items()
    }
    first = columns[0]
    baseline, *others = comparison.summaries
    differences = {
        label: paired_difference(
            values(comparison.summaries[label], first),
            values(comparison.summaries[baseline], first),
        )
        for label in others
    }
    titles = ["method", *(column.title for column in columns), f"{first.title}: minus {baseline}"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for label, row in rows.items():
        cells = [shown(row[column.key], column.digits) for column in columns]
        difference = differences.get(label)
        cells.append(shown_difference(difference, first.digits) if difference else "–")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    seeds = ", ".join(map(str, comparison.seeds))
    lines += ["", f"Mean ± standard deviation over seeds {seeds}; in the last column the paired"]
    lines[-1] += " difference and its 95 % interval."
    table = "\n".join(lines) + "\n"
    write_atomically(Path(output) / "table.md", table)
    content = {
        "seeds": list(comparison.seeds),
        "baseline": baseline,
        "methods": {
            label: {
                **{key: finite(cell) for key, cell in rows[label].items()},
                "difference": finite(differences[label]) if label in differences else None,
                "runs": list(runs),
            }
            for label, runs in comparison.summaries.items()
        },
    }
    write_atomically(Path(output) / "table.json", json.dumps(content, indent=2) + "\n")
    return table


def common_columns(comparison: Comparison, columns: Sequence[Column]) -> list[Column]:
    """The figures that every run has which ended."""
    every_run = [run for runs in comparison.summaries.values() for run in runs]
    ended = [run for run in every_run if "diverged" not in run]
    return [column for column in columns if all(column.key in run for run in ended)]


def values(summaries: Sequence[Mapping[str, Any]], column: Column) -> list[float]:
    """One figure of every run, in the column's unit; not a number for one that diverged."""
    return [float(summary.get(column.key, math.nan)) * column.scale for summary in summaries]


def spread(figures: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation (0 for a single run)."""
    deviation = float(np.std(figures, ddof=1)) if len(figures) > 1 else 0.0
    return {"mean": float(np.mean(figures)), "std": deviation}


def paired_difference(figures: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    """Mean of the differences seed by seed, and its 95 % interval (infinite for one seed)."""
    found = spread([a - b for a, b in zip(figures, baseline, strict=True)])
    n = len(figures)
    half = math.inf
    if n > 1:
        half = float(stats.t.ppf(0.975, n - 1)) * found["std"] / math.sqrt(n)
    return {"mean": found["mean"], "low": found["mean"] - half, "high": found["mean"] + half}


def finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """The figures with None, which JSON knows, for those that are not finite."""
    return {name: x if math.isfinite(x) else None for name, x in figures.items()}


def shown(cell: Mapping[str, float], digits: int) -> str:
    """A cell of the table."""
    if math.isnan(cell["mean"]):
        return "diverged"
    return f"{cell['mean']:.{digits}f} ± {cell['std']:.{digits}f}"


def shown_difference(difference: Mapping[str, float], digits: int) -> str:
    """A difference and its interval."""
    if math.isnan(difference["mean"]):
        return "–"
    if math.isinf(difference["low"]):
        return f"{difference['mean']:+.{digits}f}"
    low, high = difference["low"], difference["high"]
    return f"{difference['mean']:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def seeds_of(text: str) -> list[int]:
    """``"0,1,2"`` as a list; a UserError for what is no number, or repeated."""
    parts = comma_separated(text)
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"expected --seeds as numbers with commas between, got {text!r}")
    return [int(part) for part in parts]


def positive_numbers(text: str, name: str) -> list[float]:
    """``"0.01,0.1"`` as a list; a UserError, with the flag's name, for other than such numbers."""
    parts = comma_separated(text)
    try:
        found = [float(part) for part in parts]
    except ValueError:
        found = []
    wrong = not found or any(not 0 < number < math.inf for number in found)
    if wrong or len({f"{number:g}" for number in found}) < len(found):  # by which they are named
        raise UserError(
            f"expected {name} as different positive numbers with commas between, got {text!r}"
        )
    return found


def comma_separated(text: str) -> list[str]:
    """``"none,mhe"`` as a list; a UserError for an empty or repeated part."""
    parts = [part.strip() for part in str(text).split(",")]
    if not all(parts) or len(set(parts)) < len(parts):
        raise UserError(f"expected different names or numbers with commas between, got {text!r}")
    return parts
