"""Sums and means of differences over the blocks of a network, and over the kinds of its layers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mhe_core.diagnostics.difference import LayerDifference

__all__ = ["Total", "by_block", "by_kind", "total"]


@dataclass(frozen=True)
class Total:
    """Of several layers: sums of energies, and means.

    Attributes:
        layers: how many.
        energy_base: sum of their energies before.
        energy_tuned: sum of their energies after.
        relative_change: of these sums.
        cosine_rms: mean over the layers.
        rotation_defect: mean over the layers.
        norm_ratio: geometric mean over the layers.
    """

    layers: int
    energy_base: float
    energy_tuned: float
    relative_change: float
    cosine_rms: float
    rotation_defect: float
    norm_ratio: float


def total(layers: Sequence[LayerDifference]) -> Total:
    """Of all layers."""
    base, tuned = (sum(getattr(x, f"energy_{side}") for x in layers) for side in ("base", "tuned"))
    n = len(layers)
    logs = [math.log(layer.norm_ratio) if layer.norm_ratio > 0 else -math.inf for layer in layers]
    return Total(
        layers=n,
        energy_base=base,
        energy_tuned=tuned,
        relative_change=(tuned - base) / base if base else math.nan,
        cosine_rms=sum(layer.cosine_rms for layer in layers) / n,
        rotation_defect=sum(layer.rotation_defect for layer in layers) / n,
        norm_ratio=math.exp(sum(logs) / n),
    )


def by_block(layers: Sequence[LayerDifference]) -> dict[str, Total]:
    """By the name up to the first number: ``model.layers.3``."""
    return _grouped(layers, [parts(layer.name)[0] for layer in layers])


def by_kind(layers: Sequence[LayerDifference]) -> dict[str, Total]:
    """By the name after the first number: ``self_attn.q_proj``."""
    return _grouped(layers, [parts(layer.name)[1] for layer in layers])


def parts(name: str) -> tuple[str, str]:
    """Block and kind of a layer; of one outside all blocks, the name is both."""
    match = re.match(r"((?:.*?\.)?\d+)\.(.+)", name)
    return (match[1], match[2]) if match else (name, name)


def _grouped(layers: Sequence[LayerDifference], names: Sequence[str]) -> dict[str, Total]:
    groups: dict[str, list[LayerDifference]] = {}
    for layer, name in zip(layers, names, strict=True):
        groups.setdefault(name, []).append(layer)
    return {name: total(group) for name, group in groups.items()}
