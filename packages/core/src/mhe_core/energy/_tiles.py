r"""The fast path of the hyperspherical energy: value and gradient in one pass over tiles.

For directions :math:`u_i` with cosines :math:`c_{ij}`, an energy :math:`\sum_{i<j} F(c_{ij})` has
the gradient :math:`\sum_j F'(c_{ij})\, u_j` with respect to :math:`u_i`. A tile of cosines serves
both, and as :math:`c_{ij} = c_{ji}` only the tiles on and above the diagonal are needed: three
quarters of the arithmetic of the two products U·Uᵀ and F'·U, and memory for one tile. The neurons
are not normalised: their lengths are divided out of the tile, on both of its sides.

What is computed is defined in reference.py. This file goes over the tiles; _pairs.py adds up one,
and potential.py has the potential as a function of the cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mhe_core.energy._pairs import Block, PairMean
from mhe_core.energy.potential import Riesz
from mhe_core.energy.reference import definition
from mhe_core.energy.rows import inverse_lengths, slope_at_length, unit_rows, wide_dtype

__all__ = ["tiled_energy", "value_and_gradient"]

# Rows and entries of a tile, at most: so few that, on a CPU, it stays in the cache.
ROWS_ON_CPU, ENTRIES_ON_CPU = 512, 2**17
ROWS, ENTRIES = 4096, 2**24


def tiled_energy(
    neurons: Tensor, anchors: Tensor | None, riesz: Riesz, share: tuple[int, int] = (0, 1)
) -> Tensor:
    """The energy ``[...]`` of neurons ``[..., N, d]``, equal to :func:`reference.definition`.

    Differentiable any number of times; derivatives beyond the first are those of the definition.

    Args:
        neurons: ``[..., N, d]``.
        anchors: indices ``[M]``, or None for all pairs.
        riesz: the potential of a pair.
        share: (k, n) for the k-th of n shares of the energy, which add up to the whole.
    """
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return definition(neurons, anchors, *riesz) / share[1]  # torch.func, forward mode
    if torch.compiler.is_compiling():  # nothing to gain: a few large operations
        return torch.compiler.disable(tiled_energy)(neurons, anchors, riesz, share)
    if torch.is_grad_enabled() and neurons.requires_grad:
        return _TiledEnergy.apply(neurons, anchors, riesz, share)
    return value_and_gradient(neurons, anchors, riesz, False, share)[0]


class _TiledEnergy(torch.autograd.Function):
    """The gradient is found along with the value, and waits for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, neurons: Tensor, anchors: Tensor | None, riesz: Riesz, share: tuple[int, int]
    ) -> Tensor:
        ctx.anchors, ctx.riesz, ctx.share = anchors, riesz, share
        ctx.save_for_backward(neurons)
        value, ctx.gradient = value_and_gradient(neurons, anchors, riesz, True, share)
        return value

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (neurons,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative will be wanted: all shares are alike
            value = definition(neurons, ctx.anchors, *ctx.riesz) / ctx.share[1]
            (slope,) = torch.autograd.grad(value, neurons, grad_output, create_graph=True)
            return slope, None, None, None
        # Taken, not kept, so that it can be scaled in place; should this pass be repeated, the
        # gradient is computed again.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            _, gradient = value_and_gradient(neurons, ctx.anchors, ctx.riesz, True, ctx.share)
        limit = torch.finfo(neurons.dtype).max
        gradient.mul_(grad_output[..., None, None]).clamp_(-limit, limit)
        return gradient.to(neurons.dtype), None, None, None


def value_and_gradient(
    neurons: Tensor,
    anchors: Tensor | None,
    riesz: Riesz,
    wants_gradient: bool,
    share: tuple[int, int] = (0, 1),
) -> tuple[Tensor, Tensor | None]:
    """Energy ``[...]`` and, if wanted, its gradient ``[..., N, d]``, in at least float32.

    Args:
        neurons: ``[..., N, d]``.
        anchors: indices ``[M]``, or None for all pairs.
        riesz: the potential of a pair.
        wants_gradient: whether to find the gradient, too.
        share: (k, n) for the k-th of n shares of the tiles; values and gradients of all shares
            add up to those of the whole. Not with anchors.
    """
    dtype = torch.promote_types(neurons.dtype, torch.float32)
    x = neurons.detach().to(dtype).reshape(-1, *neurons.shape[-2:])
    inverse, lengths = inverse_lengths(x, riesz), None
    if inverse is None:  # squares of such lengths overflow or vanish
        x, lengths = unit_rows(x.to(wide_dtype(x.device)), riesz.smoothing)
        inverse = lengths.isfinite().to(x.dtype)
    value = x.new_zeros(len(x), dtype=wide_dtype(x.device))
    gradient = inverse.new_empty(x.shape) if wants_gradient else None
    N = x.shape[1]
    M = N / 2 if anchors is None else len(anchors)  # of a pair, one is the anchor
    pairs = PairMean(riesz, M * riesz.neighbours(N), dtype)
    rows, together = tile_shape(x)
    for part in Block(x, inverse, value, gradient).split_batch(together):
        blocks = part.split_rows(rows)
        if anchors is None:
            add_all(pairs, blocks, share)
        else:
            add_anchors(pairs, part, blocks, anchors.to(x.device).split(rows))
        for block in blocks:
            block.finish()

    value = value.to(dtype).view(neurons.shape[:-2])
    if gradient is None:
        return value, None
    if lengths is not None:
        gradient = slope_at_length(gradient, lengths, dtype)
    return value, gradient.view(neurons.shape)


def add_all(pairs: PairMean, blocks: list[Block], share: tuple[int, int]) -> None:
    """Add this share of the tiles on and above the diagonal."""
    first, step = share
    tiles = [*combinations(blocks, 2), *zip(blocks, blocks, strict=True)]
    for a, b in tiles[first::step]:
        pairs.add(a, b)
        if a is b:
            pairs.add_antipodes(a, 0.5)


def add_anchors(
    pairs: PairMean, whole: Block, blocks: list[Block], anchors: Sequence[Tensor]
) -> None:
    """Add the pairs of each anchor and all neurons."""
    for index in anchors:
        a = whole.pick(index)
        for b in blocks:
            pairs.add(a, b)
        pairs.add_antipodes(a, 1.0)
        a.finish()
        if whole.gradient is not None and a.gradient is not None:
            whole.gradient.index_add_(1, index, a.gradient)


def tile_shape(x: Tensor) -> tuple[int, int]:
    """Rows of a tile of ``[B, N, d]``, and how many of the B are taken together."""
    on_cpu = x.device.type == "cpu"
    B, N, _ = x.shape
    most, entries = (ROWS_ON_CPU, ENTRIES_ON_CPU) if on_cpu else (ROWS, ENTRIES)
    if B > 1:  # there are many tiles anyway: smaller ones make more of the symmetry
        most = -(-most // 4)
    rows = -(-N // -(-N // most))
    return rows, max(1, entries // rows**2)
