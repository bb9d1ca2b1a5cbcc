"""The command ``mhe diff``: what training did to the neurons of a network."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mhe_core.cli.inspect import aligned, load, plain
from mhe_core.diagnostics.difference import (
    Comparison,
    LayerDifference,
    Unpaired,
    compare_weights,
)
from mhe_core.diagnostics.summary import Total, by_block, by_kind, total
from mhe_core.energy.distances import DISTANCES
from mhe_core.errors import users_request

__all__ = ["add_diff"]

SORT_KEYS: dict[str, Callable[[LayerDifference], float]] = {
    "change": lambda layer: -abs(layer.relative_change),
    "cosine": lambda layer: -layer.cosine_rms,
    "defect": lambda layer: -layer.rotation_defect,
    "norm": lambda layer: -abs(math.log(layer.norm_ratio)) if layer.norm_ratio > 0 else -math.inf,
}


def add_diff(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mhe diff``."""
    command = commands.add_parser(
        "diff",
        help="what training did to each layer's neurons: energy, cosines, rotation, norms",
        description="Compare two checkpoints, weight by weight: energy before and after and its "
        "relative change, the root mean square change of the cosines between neurons, how far the "
        "change is from a rotation of all neurons together (the defect), the ratio of norms, and "
        "the smallest angle of both in degrees. With several TUNED, a line for each, in the order "
        "of their steps.",
    )
    add = command.add_argument
    add("base", metavar="BASE", help="a weights file or folder, or a timm model name")
    add("tuned", metavar="TUNED", nargs="+", help="the same, or a folder with an adapter of BASE")
    add("--pretrained", action="store_true", help="timm's pretrained weights for BASE")
    add("--key", help="where in a nested checkpoint the state dict is, such as generator")
    add("--s", type=float, default=2.0, help="power of the Riesz potential (default: 2)")
    add("--distance", choices=DISTANCES, default="euclidean", help="chord or angle")
    add("--half-space", action="store_true", help="count every neuron also with its antipode")
    add("--reduction", choices=("mean", "sum"), default="mean", help="over pairs of neurons")
    add(
        "--max-rows",
        type=int,
        default=1024,
        metavar="ROWS",
        help="sample so many neurons of larger weights, 0: take all (default: 1024)",
    )
    add("--seed", type=int, default=0, help="of the sample (default: 0)")
    add("--sort", choices=tuple(SORT_KEYS), help="largest change first (default: base's order)")
    add("--json", action="store_true", help="print JSON, with angles in radians")
    add("--plot", type=Path, metavar="FILE.png", help="draw the changes, or the curve over steps")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``mhe diff``."""
    base = load(arguments.base, pretrained=arguments.pretrained, key=stored_key(arguments, "base"))
    steps = sorted(arguments.tuned, key=step_of) if len(arguments.tuned) > 1 else arguments.tuned
    with users_request(f"cannot compare with {arguments.base}"):
        comparisons = {name: compared(base, name, arguments) for name in steps}
    if arguments.plot:
        from mhe_core.diagnostics.plot_difference import plot_changes, plot_trajectory

        if len(steps) > 1:
            plot_trajectory({n: total(c.layers) for n, c in comparisons.items()}, arguments.plot)
        else:
            plot_changes(comparisons[steps[0]].layers, arguments.plot)
    if arguments.json:
        print(json.dumps([as_json(name, c) for name, c in comparisons.items()], indent=2))
    elif len(steps) > 1:
        print(total_table("checkpoint", {name: total(c.layers) for name, c in comparisons.items()}))
    else:
        print(report(comparisons[steps[0]], arguments))


def stored_key(arguments: argparse.Namespace, side: str) -> str | None:
    """The key, for what is a file."""
    return arguments.key if side == "tuned" or Path(arguments.base).exists() else None


def compared(base: Any, name: str, arguments: argparse.Namespace) -> Comparison:
    """BASE against one of TUNED."""
    return compare_weights(
        base,
        load(name, key=arguments.key, base=base),
        s=arguments.s,
        distance=arguments.distance,
        half_space=arguments.half_space,
        reduction=arguments.reduction,
        max_rows=arguments.max_rows or None,
        seed=arguments.seed,
    )


def step_of(name: str) -> tuple[list[int], str]:
    """The numbers in a checkpoint's name: checkpoint-900 comes before checkpoint-1000."""
    return [int(number) for number in re.findall(r"\d+", Path(name).name)], name


def report(comparison: Comparison, arguments: argparse.Namespace) -> str:
    """The tables of one comparison: each layer, blocks, kinds, and what was left out."""
    every, layers = comparison.layers, list(comparison.layers)
    if arguments.sort:
        worst_first = SORT_KEYS[arguments.sort]
        layers.sort(key=lambda layer: (math.isfinite(layer.relative_change), worst_first(layer)))
    head = ("layer", "N", "d", "E base", "E tuned", "change", "cos RMS", "defect", "norm",
            "base°", "tuned°")  # fmt: skip
    parts = [aligned([head, *(cells(layer) for layer in layers)])]
    for title, sums in (("block", by_block(every)), ("kind", by_kind(every))):
        if 1 < len(sums) < len(layers):
            parts.append(total_table(title, sums))
    parts.append(total_table("total", {"all": total(layers)}))
    return "\n\n".join([*parts, *left_out(comparison.unpaired, layers)])


def cells(layer: LayerDifference) -> tuple[str, ...]:
    """One row of the table."""
    sample = layer.sampled < layer.num_neurons
    return (
        layer.name or "(weight)",
        f"{layer.sampled} of {layer.num_neurons}" if sample else str(layer.num_neurons),
        str(layer.dim),
        f"{layer.energy_base:.6g}",
        f"{layer.energy_tuned:.6g}",
        f"{layer.relative_change:+.3%}",
        f"{layer.cosine_rms:.2e}",
        f"{layer.rotation_defect:.2e}",
        f"{layer.norm_ratio:.4f}",
        f"{math.degrees(layer.smallest_angle_base):.2f}",
        f"{math.degrees(layer.smallest_angle_tuned):.2f}",
    )


def total_table(title: str, totals: dict[str, Total]) -> str:
    """Sums and means, one line an entry."""
    head = (title, "layers", "ΣE base", "ΣE tuned", "change", "cos RMS", "defect", "norm")
    rows = [
        (
            name,
            str(t.layers),
            f"{t.energy_base:.6g}",
            f"{t.energy_tuned:.6g}",
            f"{t.relative_change:+.3%}",
            f"{t.cosine_rms:.2e}",
            f"{t.rotation_defect:.2e}",
            f"{t.norm_ratio:.4f}",
        )
        for name, t in totals.items()
    ]
    return aligned([head, *rows])


def left_out(unpaired: Unpaired, layers: Sequence[LayerDifference]) -> list[str]:
    """What to say of weights that were not compared, or only by a sample."""
    said = [
        f"{title}: {', '.join(names)}"
        for title, names in (
            ("only in BASE", unpaired.only_base),
            ("only in TUNED", unpaired.only_tuned),
            ("in other shapes", unpaired.other_shape),
        )
        if names
    ]
    if any(layer.sampled < layer.num_neurons for layer in layers):
        said.append("N as “some of all”: figures are of a sample of the neurons (--max-rows)")
    return said


def as_json(name: str, comparison: Comparison) -> dict[str, Any]:
    """One comparison; what is infinite or not a number is null."""
    layers = [{k: plain(v) for k, v in asdict(layer).items()} for layer in comparison.layers]
    sums = {k: plain(v) for k, v in asdict(total(comparison.layers)).items()}
    return {
        "tuned": name,
        "layers": layers,
        "total": sums,
        "unpaired": asdict(comparison.unpaired),
    }
