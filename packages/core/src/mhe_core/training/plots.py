"""Plots of several runs; needs the extra ``mhe-core[plots]``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mhe_core.plotting import drawing
from mhe_core.training.compare import Comparison
from mhe_core.training.run import METRICS_FILE

__all__ = ["Panel", "plot_against", "plot_curves"]


@dataclass(frozen=True)
class Panel:
    """One figure of metrics.jsonl against steps: its key, its axis title, its unit and scale."""

    key: str
    title: str
    scale: float = 1.0
    log: bool = False


def plot_curves(comparison: Comparison, panels: Sequence[Panel], file: Path) -> Path:
    """Draw each panel with one line a method: the mean over seeds, and their range as a band."""
    with drawing(file, 4.6 * len(panels), 3.8) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            for label, paths in comparison.paths.items():
                if not paths:
                    continue
                curves = [read_curve(path, panel.key) for path in paths]
                steps = sorted(set.intersection(*(set(curve) for curve in curves)))
                if not steps:
                    continue
                heights = (
                    np.array([[curve[step] for step in steps] for curve in curves]) * panel.scale
                )
                (line,) = axis.plot(steps, heights.mean(0), label=label)
                axis.fill_between(
                    steps, heights.min(0), heights.max(0), color=line.get_color(), alpha=0.15, lw=0
                )
            axis.set_xlabel("step")
            axis.set_title(panel.title)
            axis.set_yscale("log" if panel.log else "linear")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return file


def plot_against(
    setting: str, comparisons: Mapping[float, Comparison], panel: Panel, file: Path
) -> Path:
    """Draw a figure of summary.json against a setting: each run a dot, each method a line."""
    with drawing(file, 5.6, 4.0) as figure:
        axis = figure.subplots()
        found = list(comparisons)
        for label in next(iter(comparisons.values())).summaries:
            runs_of = [comparisons[value].summaries[label] for value in found]
            heights = [
                [run.get(panel.key, np.nan) * panel.scale for run in runs] for runs in runs_of
            ]
            (line,) = axis.plot(found, [np.mean(runs) for runs in heights], label=label)
            for value, runs in zip(found, heights, strict=True):
                axis.plot([value] * len(runs), runs, ".", color=line.get_color(), alpha=0.6)
        axis.set_xscale("log")
        axis.set_xticks(found, [f"{value:g}" for value in found])
        axis.minorticks_off()
        axis.set_xlabel(setting)
        axis.set_ylabel(panel.title)
        axis.legend()
    return file


def read_curve(run: Path, key: str) -> dict[int, float]:
    """The values of a metric by step, of the records that have it."""
    records = map(json.loads, (run / METRICS_FILE).read_text().splitlines())
    return {record["step"]: record[key] for record in records if key in record}
