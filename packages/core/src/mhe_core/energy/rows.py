"""Rows as they come: of any norm, of any dtype; and as unit rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mhe_core.autograd_functions import signature_kept
from mhe_core.energy._waits import Doubt, waits_are_dear
from mhe_core.energy.pair_potential import PairPotential

__all__ = [
    "directions",
    "gradient_at_norms",
    "inverse_norms",
    "known_in_range",
    "unit_rows",
    "waits_are_dear",
    "wide_dtype",
    "working_copy",
]


def inverse_norms(
    x: Tensor, pair: PairPotential, doubts: list[Doubt] | None = None
) -> Tensor | None:
    """One over the norms of rows ``[B, N, d]``, 0 for a zero row; None if one is out of range.

    In range are norms whose squares neither overflow nor vanish, nor do derivatives times them.

    Args:
        x: the rows.
        pair: the potential of a pair.
        doubts: if given, the host is not to wait for the device: whether a norm is out of range is
            added to it, and the norms count as if none were.
    """
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1)
    if pair.smoothing:
        norms = norms.square_().add_(pair.smoothing**2).sqrt_()
    least, most = pair.range_of_norms(x.dtype)
    if doubts is None and in_range(norms, least, most):
        return norms.reciprocal_()
    zero = ~x.any(-1)
    if doubts is not None:
        if norms.numel():
            doubts.append(Doubt.of(norms.masked_fill(zero, 1.0), least, most))
        inverse = norms.reciprocal_()
        return inverse if pair.smoothing else inverse.masked_fill_(zero, 0.0)
    norms.masked_fill_(zero, 1.0)
    if in_range(norms, least, most):
        return norms.reciprocal_().masked_fill_(zero, 0.0)
    return None


def known_in_range(neurons: Tensor, least: float, most: float) -> bool:
    """Whether all rows' norms are; False where the host would wait to know, or not see them."""
    if torch.compiler.is_compiling() or waits_are_dear(neurons.device):
        return False
    return in_range(torch.linalg.vector_norm(neurons.detach(), dim=-1), least, most)


def in_range(norms: Tensor, least: float, most: float) -> bool:
    """Whether all norms are at least and at most so much; so they are if there is none."""
    if norms.numel() == 0:
        return True
    shortest, longest = norms.aminmax()
    return float(shortest) >= least and float(longest) <= most


def unit_rows(neurons: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Directions ``[..., N, d]`` and norms ``[..., N]`` of rows of any norm; has no derivative.

    A row of zeros has direction 0 and infinite norm. Rows are divided by their largest entry
    first, so that squares neither overflow nor vanish.

    Args:
        neurons: ``[..., N, d]``.
        smoothing: an additional entry of each row, which has a part in its norm only.
    """
    largest = neurons.abs().amax(-1, keepdim=True)
    if smoothing:
        largest.clamp_min_(smoothing)
    else:
        largest.masked_fill_(largest == 0, torch.inf)
    unit = neurons / largest
    norms = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
    if smoothing:
        norms = torch.hypot(norms, smoothing / largest)
    else:
        norms.clamp_min_(1.0)  # which a row with an entry of ±1 has, but for rounding
    return unit.div_(norms), norms.mul_(largest).squeeze(-1)


def gradient_at_norms(gradient: Tensor, norms: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient ``[..., N, d]`` at rows of these norms ``[..., N]``, given that at unit rows.

    Changes the given one; what is beyond the range of ``dtype`` stops at its limit.
    """
    limit = torch.finfo(dtype).max
    return gradient.div_(norms.unsqueeze(-1)).clamp_(-limit, limit).to(dtype)


def directions(neurons: Tensor, smoothing: float = 0.0) -> Tensor:
    """Unit rows; a zero row stays zero and gets zero gradient.

    Differentiable any number of times. Rows are divided by their largest entry first, so that
    squares neither overflow nor vanish.

    Args:
        neurons: ``[..., N, d]``.
        smoothing: an additional entry of each row, which has a part in its norm only.
    """
    if smoothing:
        return directions(pad(neurons, (0, 1), value=smoothing))[..., :-1]
    largest = neurons.detach().abs().amax(-1, keepdim=True)
    zero = largest == 0
    scaled = neurons / largest.masked_fill(zero, 1.0)
    norms = scaled.square().sum(-1, keepdim=True).masked_fill(zero, 1.0).sqrt()
    return (scaled / norms).masked_fill(zero, 0.0)


def working_copy(neurons: Tensor) -> Tensor:
    """The neurons in at least float32, with a gradient that stays in their dtype's range.

    The energy does not depend on a neuron's norm, so its gradient grows as the inverse of it.
    """
    x = neurons.to(torch.promote_types(neurons.dtype, torch.float32))
    clamped = _ClampedGradient if torch.compiler.is_compiling() else _TransformableClamp
    clamping: Tensor = clamped.apply(x, torch.finfo(neurons.dtype).max)
    return clamping


@signature_kept
class _ClampedGradient(torch.autograd.Function):
    """The identity, through which no gradient comes back that is beyond a limit."""

    @staticmethod
    def forward(x: Tensor, limit: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        _, ctx.limit = inputs

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output.clamp(-ctx.limit, ctx.limit), None


class _TransformableClamp(_ClampedGradient):
    """The same with the rules for transforms, of which the compiler wants none."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.view_as(tangent)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, limit: float
    ) -> tuple[Tensor, int | None]:
        return _TransformableClamp.apply(x, limit), in_dims[0]


def wide_dtype(device: torch.device) -> torch.dtype:
    """Float64 where there is one: for sums, and for differences of near neighbours."""
    return torch.float32 if device.type == "mps" else torch.float64
