"""The energy of neurons whose rows are spread over processes, such as the vectors of many classes.

No process ever holds all rows. Each process's block of rows goes round a ring, one place at a time;
a process makes the pairs of its own rows with the block that is visiting, and keeps the gradient of
its own rows alone. So each pair of rows on different processes is computed twice, once on each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from mhe_core.energy._pairs import Block, PairMean
from mhe_core.energy._tiles import add_all, tile_shape
from mhe_core.energy.pair_potential import PairPotential
from mhe_core.energy.rows import gradient_at_norms, inverse_norms, unit_rows, wide_dtype

__all__ = ["ring_energy"]


def ring_energy(rows: Tensor, pair: PairPotential, group: dist.ProcessGroup | None) -> Tensor:
    """The energy of all processes' rows, with a gradient for this process's ``[N_r, d]``."""
    group = group or dist.group.WORLD
    assert group is not None  # torch.distributed is initialized
    if torch.is_grad_enabled() and rows.requires_grad:
        energy: Tensor = _RingEnergy.apply(rows, pair, group)
        return energy
    return value_and_own_gradient(rows, pair, group, False)[0]


class _RingEnergy(torch.autograd.Function):
    """The gradient is found along with the value."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, pair: PairPotential, group: dist.ProcessGroup) -> Tensor:
        value, gradient = value_and_own_gradient(rows, pair, group, True)
        ctx.dtype = rows.dtype
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "expected one derivative of sharded_hyperspherical_energy, got create_graph=True: "
                "a second one is not available"
            )
        (gradient,) = ctx.saved_tensors
        limit = torch.finfo(ctx.dtype).max
        return (gradient * grad_output).clamp_(-limit, limit).to(ctx.dtype), None, None


def value_and_own_gradient(
    rows: Tensor, pair: PairPotential, group: dist.ProcessGroup, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Energy of all rows and, if wanted, the gradient of this process's rows ``[N_r, d]``."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    x = rows.detach().to(dtype).contiguous().unsqueeze(0)
    sizes, all_in_range = agree(rows, inverse_norms(x, pair) is not None, group)
    norms = None
    if not all_in_range:  # as in _tiles.py, but on all processes if on one
        x, norms = unit_rows(x.to(wide_dtype(x.device)), pair.smoothing)
    N, energy = sum(sizes), x.new_zeros(1, dtype=wide_dtype(x.device))

    def block(x: Tensor, owner: int, gradient: Tensor | None) -> Block:
        inverse = inverse_norms(x, pair) if all_in_range else x.any(-1).to(x.dtype)
        assert inverse is not None  # all processes have agreed on it
        return Block(x, inverse, energy, gradient, start=sum(sizes[:owner]))

    count = N / 2 * pair.neighbours(N)
    pairs = PairMean(pair, 1 / count if count else 1.0, dtype)
    gradient = torch.empty_like(x) if wants_gradient else None
    height, _ = tile_shape(x)
    blocks = block(x, dist.get_rank(group), gradient).split_rows(height)
    for owner, visitor in visitors(x, sizes, group):
        for b in block(visitor, owner, None).split_rows(height):
            for a in blocks:
                pairs.add(a, b)
    energy.div_(2)  # these pairs are those that two processes compute
    add_all(pairs, blocks, (0, 1))

    dist.all_reduce(energy, group=group)
    value = energy.to(dtype).squeeze(0)
    if gradient is None:
        return value, None
    if norms is not None:
        gradient = gradient_at_norms(gradient, norms, dtype)
    return value, gradient.squeeze(0)


def agree(rows: Tensor, in_range: bool, group: dist.ProcessGroup) -> tuple[list[int], bool]:
    """Numbers of rows of all processes, and whether all rows' norms are in range.

    Raises:
        ValueError: if the dimensions differ; on all processes, so that none is left waiting.
    """
    mine = torch.tensor([*rows.shape, in_range], device=rows.device)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, mine, group=group)
    sizes, dims, all_in_range = zip(*(each.tolist() for each in found), strict=True)
    if len(set(dims)) > 1:
        raise ValueError(f"expected rows of one dimension on all processes, got {list(dims)}")
    return list(sizes), all(all_in_range)


def visitors(
    own: Tensor, sizes: list[int], group: dist.ProcessGroup
) -> Iterator[tuple[int, Tensor]]:
    """The other processes' rows ``[1, N_r, d]``, with their rank, one after the other.

    While a block is in use, it is passed on and the next one comes in.
    """
    rank, ranks = dist.get_rank(group), len(sizes)
    left, right = (dist.get_global_rank(group, (rank + k) % ranks) for k in (-1, 1))
    arriving, pending = exchange(own, sizes[rank - 1], left, right, group)
    for step in range(1, ranks):
        for work in pending:
            work.wait()
        owner, visitor = (rank - step) % ranks, arriving
        pending = []
        if step + 1 < ranks:
            arriving, pending = exchange(visitor, sizes[owner - 1], left, right, group)
        yield owner, visitor


def exchange(
    rows: Tensor, size: int, left: int, right: int, group: dist.ProcessGroup
) -> tuple[Tensor, list[dist.Work]]:
    """Start to send rows to the right, and to receive so many from the left."""
    arriving = rows.new_empty(1, size, rows.shape[2])
    return arriving, dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, rows, right, group),
            dist.P2POp(dist.irecv, arriving, left, group),
        ]
    )
