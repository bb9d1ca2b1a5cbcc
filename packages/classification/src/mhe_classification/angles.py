"""Histograms of the angles between neurons, before and after training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mhe_core import NetworkRegularizer
from mhe_core.diagnostics import angle_histogram
from mhe_core.network import find_output_layers, weight_at
from mhe_core.plotting import drawing
from torch import nn

__all__ = ["plot_angles"]

BINS = 90  # of two degrees


def plot_angles(models: Mapping[str, nn.Module], file: Path) -> Path:
    """Draw the first and the last hidden layer and the output layer, one line a network.

    Args:
        models: networks of one architecture, by label; the first is drawn dashed.
        file: the picture to write.
    """
    layers = drawn_layers(next(iter(models.values())))
    with drawing(file, 13.8, 3.8) as figure:
        axes = figure.subplots(1, len(layers))
        edges = np.linspace(0, 180, BINS + 1)
        for axis, (title, name) in zip(axes, layers.items(), strict=True):
            for number, (label, model) in enumerate(models.items()):
                neurons = weight_at(model, name).neurons()
                density = angle_histogram(neurons, BINS) * math.pi / 180
                style = {"color": "0.3", "linestyle": "--"} if number == 0 else {}
                axis.stairs(density.numpy(), edges, label=label, linewidth=1.4, **style)
            shown = [
                edge for patch in axis.patches for edge in occupied(patch.get_data().values, edges)
            ]
            axis.set_xlim(min(shown) - 2, max(shown) + 2)
            N, d = neurons.shape[-2:]
            axis.set_title(f"{title} layer, {name}: {N} neurons, d = {d}", fontsize=10)
            axis.set_xlabel("angle between neurons, degrees")
        axes[0].set_ylabel("density per degree")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return file


def drawn_layers(model: nn.Module) -> dict[str, str]:
    """The names of the layers that are drawn, by what they are."""
    outputs = find_output_layers(model)
    regularizer = NetworkRegularizer(model, "mhe-core:half_mhe", "mhe-core:mhe")
    hidden = [name for name in regularizer.terms() if name not in outputs]
    return {"first hidden": hidden[0], "last hidden": hidden[-1], "output": outputs[0]}


def occupied(density: np.ndarray, edges: np.ndarray) -> tuple[float, float]:
    """Where the histogram begins and ends."""
    bins = np.flatnonzero(density)
    return float(edges[bins[0]]), float(edges[bins[-1] + 1])
