"""Rows of any length: their directions, as the papers and as the programs take them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["released_rows", "squared_chords", "unit_rows", "wide_dtype", "working_copy"]


def working_copy(neurons: Tensor) -> Tensor:
    """The neurons in at least float32, with a gradient that stays in their dtype's range.

    What does not depend on a neuron's length has a gradient that grows as the inverse of it.
    """
    x = neurons.to(torch.promote_types(neurons.dtype, torch.float32))
    if x.requires_grad:
        x = x.view_as(x)  # the hook belongs to this call, not to the caller's tensor
        limit = torch.finfo(neurons.dtype).max
        x.register_hook(lambda g: None if g is None else g.clamp(-limit, limit))
    return x


def unit_rows(x: Tensor) -> Tensor:
    """Directions of rows ``[..., d]``; a row of zeros stays zero and gets zero gradient.

    Rows are divided by their largest entry first, so that squares neither overflow nor vanish.
    """
    largest = x.detach().abs().amax(-1, keepdim=True)
    zero = largest == 0
    scaled = x / largest.masked_fill(zero, 1.0)
    lengths = scaled.square().sum(-1, keepdim=True).masked_fill(zero, 1.0).sqrt()
    return (scaled / lengths).masked_fill(zero, 0.0)


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


def wide_dtype(x: Tensor) -> torch.dtype:
    """Float64 where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64
