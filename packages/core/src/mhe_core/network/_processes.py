"""Sharing out the layers' energies over processes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from mhe_core.energy.functional import share_of_energy
from mhe_core.energy.pair_potential import PairPotential
from mhe_core.energy.rows import wide_dtype
from mhe_core.network._batching import Layer, clipped_term, layer_terms

__all__ = [
    "averages_gradients",
    "check_rows",
    "check_same_weights",
    "group_of",
    "process",
    "shared_terms",
    "sum_over_processes",
]

# Between checksums of one model's weights, in relation to their norm: what different devices' sums
# may differ by, and those of different models hardly ever do not.
SAME = 1e-4


def shared_terms(
    layers: Sequence[Layer],
    rank: int,
    processes: int,
    group: Any = None,
    clip_factor: float | None = None,
) -> dict[str, Tensor]:
    """This process's share of each layer's term; those of all processes add up to the term.

    Each depends on the layer's neurons, if only with gradient 0, so that no weight is without one.
    """

    def share_of_tiles(layer: Layer, neurons: Tensor) -> Tensor:
        share: Tensor = _SharedTiles.apply(neurons, layer.pair, rank, processes, group)
        return share

    def nothing(layer: Layer, neurons: Tensor) -> Tensor:
        return neurons[..., :0].sum(dtype=torch.promote_types(neurons.dtype, torch.float32))

    whole, terms = [], {}
    for layer, owner in zip(layers, owners(layers, processes), strict=True):
        if owner == rank:
            whole.append(layer)
            continue
        share = share_of_tiles if owner is None else nothing
        terms[layer.name] = clipped_term(layer, layer.neurons, clip_factor, share)
    terms |= layer_terms(whole, clip_factor)
    return {layer.name: terms[layer.name] for layer in layers}


def owners(layers: Sequence[Layer], processes: int) -> list[int | None]:
    """The process that computes each layer; None for those whose tiles are shared out.

    These are layers with more work than a process's share of the whole. The others go, the largest
    first, to the process that has the least to do so far.
    """
    costs = [layer.cost for layer in layers]
    load = [0] * processes
    chosen: list[int | None] = [None] * len(layers)
    for k in sorted(range(len(layers)), key=lambda k: -costs[k]):
        if costs[k] * processes > sum(costs) and layers[k].pair is not None:
            continue
        owner = load.index(min(load))
        load[owner] += costs[k]
        chosen[k] = owner
    return chosen


class _SharedTiles(torch.autograd.Function):
    """This process's share of a layer's energy; the gradient of the whole belongs to rank 0.

    As for the other layers, then, one process has all of a layer's gradient, and can clip it.
    """

    @staticmethod
    def forward(
        ctx: Any, neurons: Tensor, pair: PairPotential, rank: int, processes: int, group: Any
    ) -> Tensor:
        ctx.pair, ctx.rank, ctx.gradient = pair, rank, None
        ctx.save_for_backward(neurons)
        x = neurons.detach().to(torch.promote_types(neurons.dtype, torch.float32))
        x.requires_grad_(ctx.needs_input_grad[0])
        with torch.set_grad_enabled(x.requires_grad):
            share = share_of_energy(x, pair, rank, processes).mean()
        if x.requires_grad:
            (gradient,) = torch.autograd.grad(share, x)
            dist.reduce(gradient, dist.get_global_rank(group, 0) if group else 0, group=group)
            ctx.gradient = gradient if rank == 0 else None
        return share.detach()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        (neurons,) = ctx.saved_tensors
        if ctx.rank > 0:
            return torch.zeros_like(neurons), None, None, None, None
        if torch.is_grad_enabled():  # a second derivative will be wanted
            energy = share_of_energy(neurons, ctx.pair, 0, 1).mean()
            (slope,) = torch.autograd.grad(energy, neurons, grad_output, create_graph=True)
            return slope, None, None, None, None
        limit = torch.finfo(neurons.dtype).max
        slope = (ctx.gradient * grad_output).clamp_(-limit, limit)
        return slope.to(neurons.dtype), None, None, None, None


def group_of(model: nn.Module) -> Any:
    """The group of the DistributedDataParallel that a model is wrapped in, or None."""
    parallel = (m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel))
    return next((m.process_group for m in parallel), None)


def averages_gradients(model: nn.Module) -> bool:
    """Whether training averages gradients over processes, as data-parallel training does.

    Not so under tensor parallelism, where all processes compute the same step, nor over all
    processes where it is used together with FSDP2, which averages over some: each has to have the
    whole gradient then, of weights that are sharded and of those that are not.
    """
    meshes = [p.device_mesh for p in model.parameters() if hasattr(p, "device_mesh")]
    fully_sharded = any(hasattr(m, "set_requires_gradient_sync") for m in model.modules())
    return not meshes or (fully_sharded and all(mesh.ndim == 1 for mesh in meshes))


def check_rows(model: nn.Module) -> None:
    """Raise a ValueError for FSDP1, whose parameters are parts of flat ones that have no rows."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(
            "expected a model sharded by FSDP2 (torch.distributed.fsdp.fully_shard), got one under "
            "FSDP1's FullyShardedDataParallel, whose parameters are flattened and have no neurons "
            "as rows"
        )


def process(group: Any = None) -> tuple[int, int]:
    """Rank of this process in the group, and their number: (0, 1) without torch.distributed.

    Raises:
        ValueError: if this process is not one of the group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError(
            f"expected a group that this process (rank {dist.get_rank()}) is in, got one without it"
        )
    return rank, dist.get_world_size(group)


def check_same_weights(layers: Sequence[Layer], group: Any = None) -> None:
    """Raise an error, on all processes, unless all have the same layers and weights.

    A collective operation: all processes of the group have to call it.

    Raises:
        ValueError: if the processes have different models.
    """
    wide = wide_dtype(layers[0].neurons.device)
    shapes = " ".join(f"{layer.name} {list(layer.neurons.shape)}" for layer in layers)
    rows = [layer.neurons.detach().to(wide).flatten() for layer in layers]
    sums = torch.stack([x.sum().to(rows[0].device) for x in rows]).sum()
    norms = torch.stack([x.norm().to(rows[0].device) for x in rows]).sum()
    digest = torch.full_like(norms, zlib.crc32(shapes.encode()) % 2**20)
    mine = torch.stack([digest, norms, sums])
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, mine, group=group)
    found = torch.stack(gathered)
    apart = (found - found[0]).abs().amax(0)
    if bool(apart[0] > 0) or bool((apart[1:] > SAME * found[0, 1]).any()):
        raise ValueError(
            "expected the same model on all processes that share the work, got different layers or "
            "weights: give group= the processes that train one model, or share_work=False where "
            "each has its own"
        )


def sum_over_processes(share: Tensor, group: Any = None) -> Tensor:
    """The sum of all processes' shares; its gradient is what, averaged over them, is the whole's.

    A collective operation: all processes of the group have to call it.
    """
    total: Tensor = _SumOverProcesses.apply(share, group)
    return total


class _SumOverProcesses(torch.autograd.Function):
    """The gradients of the shares, which are averaged later, are to be added up."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, group: Any) -> Tensor:
        ctx.processes = dist.get_world_size(group)
        total = share.to(wide_dtype(share.device), copy=True)
        dist.all_reduce(total, group=group)
        return total.to(share.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output * ctx.processes, None
