"""Angle histograms of a network's worst layers, against random directions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mhe_core.diagnostics import (
    LayerReport,
    angle_histogram,
    named_neurons,
    random_angle_density,
)
from mhe_core.errors import UserError
from mhe_core.plotting import drawing

__all__ = ["plot_angles"]

FINE = 10  # bins a degree that are counted


def plot_angles(
    model_or_state_dict: nn.Module | Mapping[str, Any],
    layers: Sequence[LayerReport],
    path: str | Path,
    *,
    half_space: bool = False,
    count: int = 6,
) -> None:
    """Draw the histograms of the angles of the layers with the most excess energy.

    Args:
        model_or_state_dict: what the reports are of.
        layers: the reports of :func:`mhe_core.diagnostics.inspect`.
        path: the picture to write; its suffix decides the format.
        half_space: as the reports.
        count: how many layers to draw at most.

    Raises:
        ValueError: if matplotlib is not installed or does not write such files.
    """
    finite = [layer for layer in layers if not math.isnan(layer.energy)]
    worst = sorted(finite, key=lambda layer: -layer.excess)[:count]
    if not worst:
        raise UserError("expected a layer whose energy is a number, to draw its angles")
    wanted = {layer.name for layer in worst}
    neurons = {name: x for name, x in named_neurons(model_or_state_dict) if name in wanted}
    columns = min(3, len(worst))
    rows = -(-len(worst) // columns)
    with drawing(path, 4.2 * columns, 3.0 * rows + 0.6) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, layer in zip(axes, worst, strict=False):
            draw_layer(axis, layer, neurons[layer.name], half_space)
        for axis in axes[len(worst) :]:
            axis.set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def draw_layer(axis: Any, layer: LayerReport, neurons: Tensor, half_space: bool) -> None:
    """One layer's histogram and the density of random directions, per degree."""
    largest = 90 if half_space else 180
    fine = angle_histogram(neurons, bins=FINE * largest, half_space=half_space)
    occupied = fine.nonzero().flatten() / FINE
    spread = 4 * math.degrees(1 / math.sqrt(layer.dim))  # of random directions, about 90°
    low, high = min(float(occupied.min()), 90 - spread), max(float(occupied.max()), 90 + spread)
    low, high = max(0.0, low - 0.03 * (high - low)), min(largest, high + 0.03 * (high - low))

    pairs = layer.groups * layer.num_neurons * (layer.num_neurons - 1) / 2
    bars = max(10, min(60, math.isqrt(int(pairs))))
    step = math.ceil((high - low) * FINE / bars)  # fine bins to a bar
    start = int(low * FINE)
    shown = torch.cat([fine[start:], fine.new_zeros(bars * step)])[: bars * step]
    edges = (start + step * torch.arange(bars + 1)) / FINE
    per_degree = shown.view(bars, step).mean(1) * math.pi / 180
    axis.stairs(per_degree.tolist(), edges.tolist(), fill=True, color="#7aa6d1", label="neurons")

    grid = torch.linspace(low, high, 400, dtype=torch.float64)
    expected = random_angle_density(max(2, layer.dim), torch.deg2rad(grid)) * math.pi / 180
    if half_space:  # an angle and its supplement are one
        expected = 2 * expected
    axis.plot(
        grid.tolist(), expected.tolist(), color="#333333", linewidth=1.2, label="random directions"
    )
    smallest = math.degrees(layer.smallest_angle)
    axis.axvline(smallest, color="#c23b22", linewidth=1.2, linestyle="--", label="smallest angle")
    axis.set_xlim(low, high)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("angle [degrees]")
    axis.set_ylabel("density per degree")
    groups = f"{layer.groups}×" if layer.groups > 1 else ""
    axis.set_title(
        f"{layer.name}\nN={groups}{layer.num_neurons}, d={layer.dim}, energy {layer.energy:.4g} "
        f"(random {layer.random_energy:.4g})",
        fontsize=9,
    )
