"""The command ``mhe inspect``: each layer's neurons, their energy and angles."""

from __future__ import annotations

import argparse
import difflib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from mhe_core.diagnostics import NEAR_DUPLICATE, LayerReport, inspect
from mhe_core.diagnostics.weights import load_state_dict
from mhe_core.energy.distances import DISTANCES
from mhe_core.errors import UserError, users_request

__all__ = ["add_inspect", "layer_table", "load"]

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")

SORT_KEYS: dict[str, Callable[[LayerReport], float]] = {
    "energy": lambda layer: -layer.energy,
    "excess": lambda layer: -layer.excess,
    "angle": lambda layer: layer.smallest_angle,
    "near": lambda layer: -layer.near_duplicates,
    "zero": lambda layer: -layer.zero_neurons,
}


def add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mhe inspect``."""
    command = commands.add_parser(
        "inspect",
        help="each layer's neurons: energy, lower bound, energy of random directions, angles",
        description="Print, for each layer with at least two neurons, their number N and dimension "
        "d, their hyperspherical energy, an energy that no N directions can go below, the expected "
        "energy of N random directions, the smallest and the mean angle between two neurons in "
        "degrees, the number of near-duplicates (neurons that have another one within --near), and "
        "the number of neurons that are zero.",
    )
    add = command.add_argument
    add("model", metavar="MODEL", help="a timm model name, or a weights file or folder")
    add("--pretrained", action="store_true", help="timm's pretrained weights, not random ones")
    add("--key", help="where in a nested checkpoint the state dict is, such as generator")
    add("--base", help="the weights that MODEL, a folder with an adapter of PEFT, belongs to")
    add("--s", type=float, default=2.0, help="power of the Riesz potential (default: 2)")
    add("--distance", choices=DISTANCES, default="euclidean", help="chord or angle")
    add("--half-space", action="store_true", help="count every neuron also with its antipode")
    add(
        "--near",
        type=float,
        default=math.degrees(NEAR_DUPLICATE),
        metavar="DEGREES",
        help="angle below which two neurons are near-duplicates (default: 10)",
    )
    add("--sort", choices=tuple(SORT_KEYS), help="worst first, by this (default: network's order)")
    add("--json", action="store_true", help="print JSON, with angles in radians")
    add("--plot", type=Path, metavar="FILE.png", help="angle histograms of the worst layers")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``mhe inspect``."""
    base = load(arguments.base) if arguments.base else None
    network = load(arguments.model, pretrained=arguments.pretrained, key=arguments.key, base=base)
    options = {"half_space": arguments.half_space, "distance": arguments.distance}
    with users_request(f"cannot inspect {arguments.model}"):
        layers = inspect(network, s=arguments.s, near=math.radians(arguments.near), **options)
    if arguments.plot:
        from mhe_core.diagnostics.plot import plot_angles

        with users_request(f"cannot plot {arguments.plot}"):
            plot_angles(network, layers, arguments.plot, half_space=arguments.half_space)
    if arguments.sort:
        worst_first = SORT_KEYS[arguments.sort]
        # A layer that is not a number is the worst of all.
        layers = sorted(
            layers, key=lambda layer: (not math.isnan(layer.energy), worst_first(layer))
        )
    print(as_json(layers) if arguments.json else layer_table(layers))


def load(
    name: str,
    *,
    pretrained: bool = False,
    key: str | None = None,
    base: Any = None,
) -> Any:
    """A network by its timm name, or a state dict from a file.

    Args:
        name: an existing file, or the name of a timm model.
        pretrained: load timm's pretrained weights (downloads them once).
        key: where in a nested checkpoint the state dict is.
        base: the weights that an adapter belongs to; by default those that its settings name.

    Raises:
        FileNotFoundError: if ``name`` looks like a file and there is none.
        ValueError: if the file cannot be read as weights, timm is not installed or has no such
            model, or an option does not apply.
    """
    if not Path(name).exists() and not name.endswith(WEIGHTS_SUFFIXES):
        if key is not None:
            raise UserError(f"expected a weights file with --key, got the model name {name!r}")
        return timm_model(name, pretrained)
    if pretrained:
        raise UserError(f"expected a timm model name with --pretrained, got the file {name}")
    base = base.state_dict() if isinstance(base, nn.Module) else base
    return load_state_dict(name, key, base=base)


def timm_model(name: str, pretrained: bool) -> nn.Module:
    """A timm model in evaluation mode."""
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"{name!r} is no file, and models by name need timm: pip install 'mhe-core[timm]'"
        ) from error
    if ":" not in name and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"expected a weights file or a timm model name, got {name!r}{hint}")
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained).eval()
        return model
    except (RuntimeError, OSError) as error:
        raise UserError(f"timm cannot make {name!r}: {error}") from error


def layer_table(layers: Sequence[LayerReport]) -> str:
    """The reports as a table, one line a layer; angles in degrees.

    A grouped convolution's N is that of each group.
    """
    head = ("layer", "N", "d", "energy", "bound", "random", "smallest°", "mean°", "near", "zero")
    return aligned([head, *(cells(layer) for layer in layers)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal columns, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *figures in rows:
        columns = [f"{name:{widths[0]}}"]
        columns += [f"{cell:>{width}}" for cell, width in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join(columns).rstrip())
    return "\n".join(lines)


def cells(layer: LayerReport) -> tuple[str, ...]:
    """One row of the table."""
    groups = f"{layer.groups}×" if layer.groups > 1 else ""
    energies = (layer.energy, layer.lower_bound, layer.random_energy)
    return (
        layer.name,
        f"{groups}{layer.num_neurons}",
        str(layer.dim),
        *(f"{energy:.5f}" if abs(energy) < 1e4 else f"{energy:.3g}" for energy in energies),
        f"{math.degrees(layer.smallest_angle):.2f}",
        f"{math.degrees(layer.mean_angle):.2f}",
        str(layer.near_duplicates),
        str(layer.zero_neurons),
    )


def as_json(layers: Sequence[LayerReport]) -> str:
    """The reports as a JSON list; what is infinite or not a number is null."""
    return json.dumps(
        [{k: plain(v) for k, v in asdict(layer).items()} for layer in layers], indent=2
    )


def plain(value: Any) -> Any:
    """What JSON can hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
