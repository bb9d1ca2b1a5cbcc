"""Rows as a published program takes them, and the chords of unit rows."""

from __future__ import annotations

from torch import Tensor

__all__ = ["released_rows", "squared_chords"]


def released_rows(x: Tensor) -> Tensor:
    """Rows ``[..., d]`` as Sphere-Uniformity's program has them: normalised twice.

    Both times with 1e-4 under the root, so that they are a little shorter than 1, and the shorter
    the shorter they were.
    """
    for _ in range(2):
        x = x * (x.square().sum(-1, keepdim=True) + 1e-4).rsqrt()
    return x


def squared_chords(u: Tensor, v: Tensor) -> Tensor:
    """‖u − v‖² of unit rows, pair by pair, ``[..., d]`` to ``[...]``, with all digits.

    A row of zeros counts as orthogonal to all others: its squared chords are 2.
    """
    zeros = (~u.any(-1)).to(u.dtype) + (~v.any(-1)).to(v.dtype)
    return (u - v).square().sum(-1) + zeros
