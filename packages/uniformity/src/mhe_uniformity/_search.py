"""Every neuron's nearest neighbour, tile by tile, and losses that are sums over such pairs.

The cosines of N neurons fill N × N numbers. A tile at a time, and, as they are symmetric, only the
tiles on and above the diagonal, the search costs little more than half the product U·Uᵀ, and the
memory of one tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mhe_core.energy.rows import wide_dtype
from torch import Tensor

__all__ = ["losses_of_pairs", "nearest_neighbours", "sum_over_pairs"]

# Rows of a tile: on a CPU so few that the tile stays in the cache.
ROWS_ON_CPU, ROWS = 512, 4096

# Entries of the pairs' neurons that are held at a time, on a CPU and elsewhere.
ENTRIES_ON_CPU, ENTRIES = 2**16, 2**24

PairLoss = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def nearest_neighbours(
    x: Tensor, scale: Tensor, *, half_space: bool = False
) -> tuple[Tensor, Tensor]:
    """For each row, which other row has the largest cosine with it.

    Neighbours whose cosines differ by less than the dtype's rounding are taken as equally near.

    Args:
        x: ``[N, d]``, N at least 2.
        scale: ``[N]``, what the rows are multiplied by: one over their lengths.
        half_space: compare the cosines' sizes, so that an opposite row is near, too.

    Returns:
        The neighbours' indices ``[N]`` and the (sizes of the) cosines ``[N]``.
    """
    rows = ROWS_ON_CPU if x.device.type == "cpu" else ROWS
    N = len(x)
    best = x.new_full((N,), -torch.inf)
    index = torch.zeros(N, dtype=torch.int64, device=x.device)
    parts = [slice(start, min(start + rows, N)) for start in range(0, N, rows)]
    for k, a in enumerate(parts):
        for b in parts[k:]:
            tile = (x[a] @ x[b].mT).mul_(scale[a, None]).mul_(scale[b])
            if half_space:
                tile.abs_()
            if a == b:
                tile.fill_diagonal_(-torch.inf)
            else:
                _keep_larger(best[b], index[b], *tile.max(0), a.start)
            _keep_larger(best[a], index[a], *tile.max(1), b.start)
    return index, best


def _keep_larger(best: Tensor, index: Tensor, found: Tensor, where: Tensor, start: int) -> None:
    """Replace, in place, those that are smaller than what was found."""
    larger = found > best
    best.copy_(torch.where(larger, found, best))
    index.copy_(torch.where(larger, where + start, index))


def sum_over_pairs(x: Tensor, i: Tensor, j: Tensor, pair_loss: PairLoss) -> Tensor:
    """Σ_k pair_loss(x[i_k], x[j_k]), a scalar, with memory for some of the pairs at a time.

    Args:
        x: ``[N, d]``.
        i: indices ``[K]``.
        j: indices ``[K]``.
        pair_loss: of rows ``[n, d]`` and ``[n, d]``, a loss each, ``[n]``. It is given them in
            float64, where the device has it, as the differences of near neighbours need digits.
    """
    return _SumOverPairs.apply(x, i, j, pair_loss)


@torch.no_grad()
def losses_of_pairs(x: Tensor, i: Tensor, j: Tensor, pair_loss: PairLoss) -> Tensor:
    """pair_loss(x[i_k], x[j_k]) for each k, ``[K]``, without a gradient; see above."""
    return torch.cat([_losses(x, k, m, pair_loss) for k, m in _parts(x, i, j)])


def _losses(x: Tensor, i: Tensor, j: Tensor, pair_loss: PairLoss) -> Tensor:
    wide = wide_dtype(x.device)
    return pair_loss(x[i].to(wide), x[j].to(wide))


class _SumOverPairs(torch.autograd.Function):
    """The gradient is found part by part in the backward pass.

    Autograd's own would keep all pairs' neurons, several times over, and have a gradient of the
    size of all neurons for each part.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, i: Tensor, j: Tensor, pair_loss: PairLoss) -> Tensor:
        ctx.save_for_backward(x, i, j)
        ctx.pair_loss = pair_loss
        return losses_of_pairs(x, i, j, pair_loss).sum().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        x, i, j = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative will be wanted
            losses = _losses(x, i, j, ctx.pair_loss)
            weights = grad_output.to(losses.dtype).expand_as(losses)
            (gradient,) = torch.autograd.grad(losses, x, weights, create_graph=True)
            return gradient, None, None, None
        gradient = torch.zeros_like(x)
        limit = torch.finfo(x.dtype).max  # which gradients at very short neurons go beyond
        for k, m in _parts(x, i, j):
            u = x[k].to(wide_dtype(x.device)).requires_grad_()
            v = x[m].to(wide_dtype(x.device)).requires_grad_()
            with torch.enable_grad():
                losses = ctx.pair_loss(u, v)
            slopes = torch.autograd.grad(losses, (u, v), grad_output.to(u.dtype).expand_as(losses))
            for rows, slope in zip((k, m), slopes, strict=True):
                # Within the limits before they are added, too: inf - inf is no number.
                gradient.index_add_(0, rows, slope.clamp(-limit, limit).to(x.dtype))
        gradient.clamp_(-limit, limit)
        return gradient, None, None, None


def _parts(x: Tensor, i: Tensor, j: Tensor) -> list[tuple[Tensor, Tensor]]:
    entries = ENTRIES_ON_CPU if x.device.type == "cpu" else ENTRIES
    size = max(1, entries // x.shape[1])
    return list(zip(i.split(size), j.split(size), strict=True))
