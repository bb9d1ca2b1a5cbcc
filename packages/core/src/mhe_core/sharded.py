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

from mhe_core.closed_form import Riesz
from mhe_core.energy import check_arguments, hyperspherical_energy
from mhe_core.lengths import inverse_lengths, slope_at_length, unit_rows
from mhe_core.pairs import Block, PairMean, wide_dtype
from mhe_core.tiles import add_all, tile_shape

__all__ = ["sharded_hyperspherical_energy"]


def sharded_hyperspherical_energy(
    local_rows: Tensor,
    *,
    s: float = 2.0,
    distance: str = "euclidean",
    half_space: bool = False,
    convention: str = "paper",
    group: Any = None,
) -> Tensor:
    """Exact energy of the neurons of all processes, each of which holds some of the rows.

    A collective operation: all processes of the group have to call it, with the same options. The
    value is the same on all. The gradient is that of the whole energy with respect to this
    process's rows, which are its alone: it is not to be averaged over processes.

    Args:
        local_rows: this process's neurons ``[N_r, d]``, N_r ≥ 1, which may differ between
            processes; d and dtype may not.
        s: see :func:`mhe_core.hyperspherical_energy`, as for the next three.
        distance: ``"euclidean"`` or ``"angular"``.
        half_space: count every neuron together with its antipode.
        convention: ``"paper"`` or ``"released_code"``.
        group: the process group; None for all processes. Without ``torch.distributed``, the
            energy is that of the local rows.

    Returns:
        The energy, a scalar in at least float32, once differentiable.

    Raises:
        TypeError: if ``local_rows`` is not floating point.
        ValueError: if it is not ``[N_r, d]`` with the d of all processes, or an option is out of
            range.
        RuntimeError: in a backward pass with ``create_graph=True``.

    Example:
        >>> import torch
        >>> from mhe_core import sharded_hyperspherical_energy
        >>> sharded_hyperspherical_energy(torch.eye(3))  # in a single process
        tensor(0.5000)
    """
    check_arguments(local_rows, s, distance, None, convention)
    if local_rows.ndim != 2:
        raise ValueError(f"expected local_rows as [N_r, d], got {list(local_rows.shape)}")
    riesz = Riesz(float(s), distance, half_space, convention)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return hyperspherical_energy(local_rows, **riesz._asdict())
    with torch.autocast(local_rows.device.type, enabled=False):
        group = group or dist.group.WORLD
        if torch.is_grad_enabled() and local_rows.requires_grad:
            return _ShardedEnergy.apply(local_rows, riesz, group)
        return value_and_own_gradient(local_rows, riesz, group, False)[0]


class _ShardedEnergy(torch.autograd.Function):
    """The gradient is found along with the value."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, riesz: Riesz, group: dist.ProcessGroup) -> Tensor:
        value, gradient = value_and_own_gradient(rows, riesz, group, True)
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
    rows: Tensor, riesz: Riesz, group: dist.ProcessGroup, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Energy of all rows and, if wanted, the gradient of this process's rows ``[N_r, d]``."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    x = rows.detach().to(dtype).contiguous().unsqueeze(0)
    sizes, all_in_range = agree(rows, inverse_lengths(x, riesz) is not None, group)
    lengths = None
    if not all_in_range:  # as in tiles.py, but on all processes if on one
        x, lengths = unit_rows(x.to(wide_dtype(x.device)), riesz.smoothing)
    N, energy = sum(sizes), x.new_zeros(1, dtype=wide_dtype(x.device))

    def block(x: Tensor, owner: int, gradient: Tensor | None) -> Block:
        inverse = inverse_lengths(x, riesz) if all_in_range else x.any(-1).to(x.dtype)
        assert inverse is not None  # all processes have agreed on it
        return Block(x, inverse, energy, gradient, start=sum(sizes[:owner]))

    pairs = PairMean(riesz, N / 2 * riesz.neighbours(N), dtype)
    gradient = torch.empty_like(x) if wants_gradient else None
    height, _ = tile_shape(x)
    blocks = block(x, dist.get_rank(group), gradient).split_rows(height)
    for owner, visitor in visitors(x, sizes, group):
        for b in block(visitor, owner, None).split_rows(height):
            for a in blocks:
                pairs.add(a, b)
    energy.div_(2)  # these pairs are those that two processes compute
    add_all(pairs, blocks, (0, 1))
    for a in blocks:
        a.finish()

    dist.all_reduce(energy, group=group)
    value = energy.to(dtype).squeeze(0)
    if gradient is None:
        return value, None
    if lengths is not None:
        gradient = slope_at_length(gradient, lengths, dtype)
    return value, gradient.squeeze(0)


def agree(rows: Tensor, in_range: bool, group: dist.ProcessGroup) -> tuple[list[int], bool]:
    """Numbers of rows of all processes, and whether all rows' lengths are in range.

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
