"""Pictures of what training did to the energy of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mhe_core.diagnostics.difference import LayerDifference
from mhe_core.diagnostics.summary import Total
from mhe_core.plotting import drawing

__all__ = ["plot_changes", "plot_trajectory"]


def plot_changes(layers: Sequence[LayerDifference], path: str | Path) -> None:
    """Draw each layer's change of energy, of cosines, and rotation defect.

    Args:
        layers: what :func:`mhe_core.diagnostics.difference` returned.
        path: the picture to write; its suffix decides the format.

    Raises:
        UserError: if matplotlib is not installed or does not write such files.
    """
    with drawing(path, max(6.0, 0.18 * len(layers)), 7.0) as figure:
        axes = figure.subplots(3, 1, sharex=True)
        places = range(len(layers))
        for axis, label, values in (
            (axes[0], "change of energy, %", [100 * layer.relative_change for layer in layers]),
            (axes[1], "cosines, RMS change", [layer.cosine_rms for layer in layers]),
            (axes[2], "rotation defect", [layer.rotation_defect for layer in layers]),
        ):
            axis.bar(places, values)
            axis.set_ylabel(label)
            axis.grid(visible=False, axis="x")
        axes[2].set_xticks(places, [layer.name for layer in layers], rotation=90, fontsize=6)


def plot_trajectory(totals: Mapping[str, Total], path: str | Path) -> None:
    """Draw the network's change of energy, and of cosines, over checkpoints.

    Args:
        totals: by checkpoint, in the order of steps.
        path: the picture to write; its suffix decides the format.

    Raises:
        UserError: if matplotlib is not installed or does not write such files.
    """
    with drawing(path, 7.0, 7.0) as figure:
        change, cosines = figure.subplots(2, 1, sharex=True)
        places = range(len(totals))
        change.plot(places, [100 * t.relative_change for t in totals.values()], marker="o")
        change.set_ylabel("change of energy, %")
        cosines.plot(
            places, [t.cosine_rms for t in totals.values()], marker="o", label="cosines, RMS"
        )
        cosines.plot(
            places, [t.rotation_defect for t in totals.values()], marker="s", label="defect"
        )
        cosines.legend()
        cosines.set_xticks(places, [Path(name).name for name in totals], rotation=45, fontsize=7)
