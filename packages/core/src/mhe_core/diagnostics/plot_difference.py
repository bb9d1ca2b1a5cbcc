"""Pictures of what training did to the energy of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mhe_core.diagnostics.difference import LayerDifference
from mhe_core.diagnostics.summary import Total
from mhe_core.errors import UserError

__all__ = ["plot_changes", "plot_trajectory"]


def plot_changes(layers: Sequence[LayerDifference], path: str | Path) -> None:
    """Draw each layer's change of energy, of cosines, and rotation defect.

    Args:
        layers: what :func:`mhe_core.diagnostics.difference` returned.
        path: the picture to write; its suffix decides the format.

    Raises:
        ValueError: if matplotlib is not installed or does not write such files.
    """
    figure = _figure(max(6.0, 0.18 * len(layers)))
    axes = figure.subplots(3, 1, sharex=True)
    places = range(len(layers))
    for axis, label, values in (
        (axes[0], "change of energy, %", [100 * layer.relative_change for layer in layers]),
        (axes[1], "cosines, RMS change", [layer.cosine_rms for layer in layers]),
        (axes[2], "rotation defect", [layer.rotation_defect for layer in layers]),
    ):
        axis.bar(places, values)
        axis.set_ylabel(label)
        axis.grid(axis="y", alpha=0.3)
    axes[2].set_xticks(places, [layer.name for layer in layers], rotation=90, fontsize=6)
    _save(figure, path)


def plot_trajectory(totals: Mapping[str, Total], path: str | Path) -> None:
    """Draw the network's change of energy, and of cosines, over checkpoints.

    Args:
        totals: by checkpoint, in the order of steps.
        path: the picture to write; its suffix decides the format.

    Raises:
        ValueError: if matplotlib is not installed or does not write such files.
    """
    figure = _figure(7.0)
    axes = figure.subplots(2, 1, sharex=True)
    places = range(len(totals))
    axes[0].plot(places, [100 * t.relative_change for t in totals.values()], marker="o")
    axes[0].set_ylabel("change of energy, %")
    axes[1].plot(places, [t.cosine_rms for t in totals.values()], marker="o", label="cosines, RMS")
    axes[1].plot(places, [t.rotation_defect for t in totals.values()], marker="s", label="defect")
    axes[1].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[1].set_xticks(places, [Path(name).name for name in totals], rotation=45, fontsize=7)
    _save(figure, path)


def _figure(width: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install 'mhe-core[plots]'") from error
    figure = Figure(figsize=(width, 7.0), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: str | Path) -> None:
    try:
        figure.savefig(path)
    except ValueError as error:
        raise UserError(f"cannot write {path}: {error}") from error
