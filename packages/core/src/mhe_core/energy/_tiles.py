r"""The fast path of the hyperspherical energy: value and gradient in one pass over tiles.

For directions :math:`u_i` with cosines :math:`c_{ij}`, an energy :math:`\sum_{i<j} F(c_{ij})` has
the gradient :math:`\sum_j F'(c_{ij})\, u_j` with respect to :math:`u_i`. A tile of cosines serves
both, and as :math:`c_{ij} = c_{ji}` only the tiles on and above the diagonal are needed: three
quarters of the arithmetic of the two products U·Uᵀ and F'·U, and memory for one tile. The neurons
are not normalised: their norms are divided out of the tile, on both of its sides.

What is computed is defined in reference.py. This file goes over the tiles; _pairs.py adds up one.

On an accelerator the host does not wait for the device to learn whether all is usual (no pair too
near for its cosine, no norm out of range): it goes on as if it were, and asks once, at the end,
whether it has to be done again with care.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from mhe_core.energy._pairs import Block, PairMean
from mhe_core.energy._waits import Doubt, any_justified, waits_are_dear
from mhe_core.energy.pair_potential import PairPotential
from mhe_core.energy.rows import gradient_at_norms, inverse_norms, unit_rows, wide_dtype

__all__ = ["add_all", "tile_shape", "value_and_gradient"]

# Rows and entries of a tile, at most: so few that, on a CPU, it stays in the cache.
ROWS_ON_CPU, ENTRIES_ON_CPU = 512, 2**17
ROWS, ENTRIES = 4096, 2**24


def value_and_gradient(
    neurons: Tensor,
    anchors: Tensor | None,
    pair: PairPotential,
    wants_gradient: bool,
    share: tuple[int, int] = (0, 1),
    *,
    rows: bool = False,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Energy ``[...]`` and, if wanted, its gradient ``[..., N, d]``, in at least float32.

    Args:
        neurons: ``[..., N, d]``.
        anchors: indices ``[M]``, or None for all pairs.
        pair: the potential of a pair.
        wants_gradient: whether to find the gradient, too.
        share: (k, n) for the k-th of n shares of the tiles; values and gradients of all shares
            add up to those of the whole. Not with anchors.
        rows: find the energies of the rows, ``[..., N]`` or ``[..., M]``: their means over their
            pairs. The gradient is that of their sum, or with weights of their weighted sum.
        weights: of the shape of the rows' energies.
    """
    arguments = (neurons, anchors, pair, wants_gradient, share, rows, weights)
    if waits_are_dear(neurons.device):
        doubts: list[Doubt] = []
        result = pass_over_tiles(*arguments, doubts)
        if not any_justified(doubts):
            return result
    return pass_over_tiles(*arguments, None)


def pass_over_tiles(
    neurons: Tensor,
    anchors: Tensor | None,
    pair: PairPotential,
    wants_gradient: bool,
    share: tuple[int, int],
    rows: bool,
    weights: Tensor | None,
    doubts: list[Doubt] | None,
) -> tuple[Tensor, Tensor | None]:
    """What :func:`value_and_gradient` does, with care, or as if all were usual."""
    dtype = torch.promote_types(neurons.dtype, torch.float32)
    x = neurons.detach().to(dtype).reshape(-1, *neurons.shape[-2:])
    inverse, norms = inverse_norms(x, pair, doubts), None
    if inverse is None:  # squares of such norms overflow or vanish
        x, norms = unit_rows(x.to(wide_dtype(x.device)), pair.smoothing)
        inverse = norms.isfinite().to(x.dtype)
    B, N, _ = x.shape
    M = N if anchors is None else len(anchors)
    shape = (B, M) if rows else (B,)
    value = x.new_zeros(shape, dtype=wide_dtype(x.device))
    gradient = inverse.new_empty(x.shape) if wants_gradient else None
    if rows:
        w = torch.ones_like(value) if weights is None else weights.reshape(shape)
        w, count = w.to(x.dtype), float(pair.neighbours(N))
    else:  # of a pair without anchors, one of the two is the anchor
        w, count = None, M * pair.neighbours(N) / (2 if anchors is None else 1)
    pairs = PairMean(pair, 1 / count if count else 1.0, dtype, doubts)
    height, together = tile_shape(x)
    if anchors is None:
        for part in Block(x, inverse, value, gradient, weights=w).split_batch(together):
            add_all(pairs, part.split_rows(height), share)
    else:
        whole = Block(x, inverse, value.new_zeros(B), gradient)  # the energy is the anchors'
        index = anchors.to(x.device)
        for k, part in enumerate(whole.split_batch(together)):
            batch = slice(k * together, (k + 1) * together)
            of_rows = None if w is None else w[batch]
            add_anchors(pairs, part, index, value[batch], of_rows, height)

    value = value.to(dtype).view((*neurons.shape[:-2], *shape[1:]))
    if gradient is None:
        return value, None
    if norms is not None:
        gradient = gradient_at_norms(gradient, norms, dtype)
    return value, gradient.view(neurons.shape)


def add_all(pairs: PairMean, blocks: list[Block], share: tuple[int, int]) -> None:
    """Add this share of the tiles on and above the diagonal."""
    first, step = share
    tiles = [*combinations(blocks, 2), *zip(blocks, blocks, strict=True)]
    for a, b in tiles[first::step]:
        pairs.add(a, b)
        if a is b:
            pairs.add_antipodes(a)
    for block in blocks:
        block.finish(pairs.last)


def add_anchors(
    pairs: PairMean,
    part: Block,
    anchors: Tensor,
    value: Tensor,
    weights: Tensor | None,
    height: int,
) -> None:
    """Add the pairs of each anchor and all neurons; ``value`` is ``[B]``, or ``[B, M]`` of rows."""
    blocks = part.split_rows(height)
    for start in range(0, len(anchors), height):
        some = slice(start, start + height)
        index = anchors[some]
        energy = value[:, some] if value.ndim == 2 else value
        a = part.pick(index, energy, None if weights is None else weights[:, some])
        for b in blocks:
            pairs.add(a, b)
        pairs.add_antipodes(a)
        a.finish(pairs.last)
        if part.gradient is not None and a.gradient is not None:
            part.gradient.index_add_(1, index, a.gradient)
    for block in blocks:
        block.finish(pairs.last)


def tile_shape(x: Tensor) -> tuple[int, int]:
    """Rows of a tile of ``[B, N, d]``, and how many of the B are taken together."""
    on_cpu = x.device.type == "cpu"
    B, N, _ = x.shape
    most, entries = (ROWS_ON_CPU, ENTRIES_ON_CPU) if on_cpu else (ROWS, ENTRIES)
    if B > 1:  # there are many tiles anyway: smaller ones make more of the symmetry
        most = -(-most // 4)
    rows = -(-N // -(-N // most))
    return rows, max(1, entries // rows**2)
