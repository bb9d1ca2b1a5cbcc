"""Lengths of neurons: of any size, and those by which the tiles can divide."""

from __future__ import annotations

import torch
from torch import Tensor

from mhe_core.energy.potential import Riesz

__all__ = [
    "directions",
    "in_range",
    "inverse_lengths",
    "slope_at_length",
    "unit_rows",
    "wide_dtype",
    "working_copy",
]


def inverse_lengths(x: Tensor, riesz: Riesz) -> Tensor | None:
    """One over the lengths of rows ``[B, N, d]``, 0 for a zero row; None if one is out of range.

    In range are lengths whose squares neither overflow nor vanish, nor do slopes times them.
    """
    lengths = torch.linalg.vector_norm(x, dim=-1)
    if riesz.smoothing:
        lengths = lengths.square_().add_(riesz.smoothing**2).sqrt_()
    least, most = riesz.range_of_lengths(x.dtype)
    if in_range(lengths, least, most):
        return lengths.reciprocal_()
    zero = ~x.any(-1)
    lengths.masked_fill_(zero, 1.0)
    if in_range(lengths, least, most):
        return lengths.reciprocal_().masked_fill_(zero, 0.0)
    return None


def in_range(lengths: Tensor, least: float, most: float) -> bool:
    """Whether all lengths are at least and at most so much; so they are if there is none."""
    if lengths.numel() == 0:
        return True
    shortest, longest = lengths.aminmax()
    return float(shortest) >= least and float(longest) <= most


def unit_rows(neurons: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Directions ``[..., N, d]`` and lengths ``[..., N]`` of rows of any length.

    A row of zeros has direction 0 and infinite length. Rows are divided by their largest entry
    first, so that squares neither overflow nor vanish.

    Args:
        neurons: ``[..., N, d]``.
        smoothing: an additional entry of each row, which has a part in its length only.
    """
    largest = neurons.abs().amax(-1, keepdim=True)
    if smoothing:
        largest.clamp_min_(smoothing)
    else:
        largest.masked_fill_(largest == 0, torch.inf)
    unit = neurons / largest
    lengths = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
    if smoothing:
        lengths = torch.hypot(lengths, smoothing / largest)
    else:
        lengths.clamp_min_(1.0)  # which a row with an entry of ±1 has, but for rounding
    return unit.div_(lengths), lengths.mul_(largest).squeeze(-1)


def slope_at_length(slope: Tensor, lengths: Tensor, dtype: torch.dtype) -> Tensor:
    """The slope ``[..., N, d]`` at rows of these lengths ``[..., N]``, given that at unit rows.

    Changes the given one; what is beyond the range of ``dtype`` stops at its limit.
    """
    limit = torch.finfo(dtype).max
    return slope.div_(lengths.unsqueeze(-1)).clamp_(-limit, limit).to(dtype)


def directions(neurons: Tensor) -> Tensor:
    """Unit rows; a zero row stays zero and gets zero gradient.

    Rows are divided by their largest entry first, so that squares neither overflow nor vanish.
    """
    largest = neurons.detach().abs().amax(-1, keepdim=True)
    zero = largest == 0
    scaled = neurons / largest.masked_fill(zero, 1.0)
    lengths = scaled.square().sum(-1, keepdim=True).masked_fill(zero, 1.0).sqrt()
    return (scaled / lengths).masked_fill(zero, 0.0)


def working_copy(neurons: Tensor) -> Tensor:
    """The neurons in at least float32, with a gradient that stays in their dtype's range.

    The energy does not depend on a neuron's length, so its gradient grows as the inverse of it.
    """
    x = neurons.to(torch.promote_types(neurons.dtype, torch.float32))
    if x.requires_grad:
        x = x.view_as(x)  # the hook belongs to this call, not to the caller's tensor
        limit = torch.finfo(neurons.dtype).max
        x.register_hook(lambda g: None if g is None else g.clamp(-limit, limit))
    return x


def wide_dtype(device: torch.device) -> torch.dtype:
    """Float64 where there is one: for sums, and for differences of near neighbours."""
    return torch.float32 if device.type == "mps" else torch.float64
