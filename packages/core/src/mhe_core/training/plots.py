"""Plots of several runs; needs the extra ``mhe-core[plots]``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mhe_core.plotting import drawing
from mhe_core.training.compare import Comparison
from mhe_core.training.run import METRICS_FILE

__all__ = ["Panel", "plot_against", "plot_curves"]


@dataclass(frozen=True)
class Panel:
    """One figure of a run: its key, its axis title, its unit and scale."""

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
    setting: str,
    methods: Mapping[str, Mapping[float | None, Sequence[Mapping[str, Any]]]],
    panels: Sequence[Panel],
    file: Path,
) -> Path:
    """Draw figures of summary.json against a setting: each run a dot, the runs' means a line.

    Args:
        setting: its name, for the axis.
        methods: by label, the summaries of each method's runs by the setting's value, positive; of
            a method that does not have the setting, by None: a horizontal line, and the runs'
            range as a band.
        panels: the figures; runs that lack one, such as those that diverged, leave a gap.
        file: the picture.
    """
    with drawing(file, 5.6 * len(panels), 4.0) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            for number, (label, runs_at) in enumerate(methods.items()):
                color = f"C{number}"
                heights = {
                    value: np.array([run.get(panel.key, np.nan) * panel.scale for run in runs])
                    for value, runs in runs_at.items()
                }
                if (level := heights.pop(None, None)) is not None:
                    axis.axhline(level.mean(), linestyle="--", color=color, label=label)
                    axis.axhspan(level.min(), level.max(), color=color, alpha=0.15, lw=0)
                    continue
                found = [value for value in heights if value is not None]
                means = [heights[value].mean() for value in found]
                axis.plot(found, means, color=color, label=label)
                for value in found:
                    dots = [value] * len(heights[value]), heights[value]
                    axis.plot(*dots, ".", color=color, alpha=0.6)
            every = {value for runs_at in methods.values() for value in runs_at}
            ticks = sorted(value for value in every if value is not None)
            axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{value:g}" for value in ticks])
            axis.minorticks_off()
            axis.set_xlabel(setting)
            axis.set_ylabel(panel.title)
            axis.set_yscale("log" if panel.log else "linear")
        axes[0].legend()
    return file


def read_curve(run: Path, key: str) -> dict[int, float]:
    """The values of a metric by step, of the records that have it."""
    records = map(json.loads, (run / METRICS_FILE).read_text().splitlines())
    return {record["step"]: record[key] for record in records if key in record}
