"""The energies of a network's layers: equal layers in one batch, and shared out over processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist

from mhe_core.closed_form import Riesz
from mhe_core.energy import hyperspherical_energy, working_copy
from mhe_core.pairs import wide_dtype
from mhe_core.regularizers import MHE, HalfSpaceMHE, Regularizer
from mhe_core.tiles import tiled_energy

__all__ = ["Layer", "layer_energies", "process", "shared_energies", "sum_over_processes"]

# Up to so many multiplications for U·Uᵀ, a call costs more than a copy of the neurons.
WORTH_BATCHING = 2**25


class Layer(NamedTuple):
    """A layer's name, regularizer and neurons ``[N, d]`` or ``[groups, N / groups, d]``."""

    name: str
    regularizer: nn.Module
    neurons: Tensor


def layer_energies(layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Each layer's energy, a differentiable scalar, by its name.

    Raises:
        ValueError: if a regularizer returns anything but a scalar.
    """
    batches: dict[Hashable, list[Layer]] = defaultdict(list)
    for layer in layers:
        riesz, x = riesz_of(layer.regularizer), layer.neurons
        alone = riesz is None or x.numel() * x.shape[-2] > WORTH_BATCHING
        alike = layer.name if alone else (riesz, x.shape, x.dtype, x.device)
        batches[alike].append(layer)
    energies: dict[str, Tensor] = {}
    for batch in batches.values():
        riesz = riesz_of(batch[0].regularizer)
        if riesz is None:
            energies[batch[0].name] = called(batch[0])
            continue
        x = torch.stack([layer.neurons for layer in batch]) if batch[1:] else batch[0].neurons[None]
        found = hyperspherical_energy(x, **riesz._asdict()).view(len(batch), -1).mean(1)
        energies.update(zip((layer.name for layer in batch), found.unbind(), strict=True))
    return {layer.name: energies[layer.name] for layer in layers}


def shared_energies(layers: Sequence[Layer], rank: int, processes: int) -> dict[str, Tensor]:
    """This process's share of each layer's energy; those of all processes add up to the energy.

    Each depends on the layer's neurons, if only with gradient 0, so that no weight is without one.
    """
    whole, energies = [], {}
    for layer, owner in zip(layers, owners(layers, processes), strict=True):
        riesz, x = riesz_of(layer.regularizer), layer.neurons
        if owner == rank:
            whole.append(layer)
        elif owner is None and riesz is not None:
            with torch.autocast(x.device.type, enabled=False):
                energies[layer.name] = tiled_energy(x, None, riesz, (rank, processes)).mean()
        else:
            energies[layer.name] = x[..., :0].sum(dtype=torch.promote_types(x.dtype, torch.float32))
    energies |= layer_energies(whole)
    return {layer.name: energies[layer.name] for layer in layers}


def owners(layers: Sequence[Layer], processes: int) -> list[int | None]:
    """The process that computes each layer; None for those whose tiles are shared out.

    These are layers with more work than a process's share of the whole. The others go, the largest
    first, to the process that has the least to do so far.
    """
    costs = [layer.neurons.numel() * layer.neurons.shape[-2] for layer in layers]
    load = [0] * processes
    chosen: list[int | None] = [None] * len(layers)
    for k in sorted(range(len(layers)), key=lambda k: -costs[k]):
        if costs[k] * processes > sum(costs) and riesz_of(layers[k].regularizer) is not None:
            continue
        owner = load.index(min(load))
        load[owner] += costs[k]
        chosen[k] = owner
    return chosen


def riesz_of(regularizer: nn.Module) -> Riesz | None:
    """The potential, where the regularizer is the energy of its neurons and nothing else."""
    if type(regularizer) not in (MHE, HalfSpaceMHE):
        return None
    r: Any = regularizer
    return Riesz(float(r.s), r.distance, r.half_space, r.convention)


def called(layer: Layer) -> Tensor:
    """What the regularizer returns for the layer's neurons."""
    with torch.autocast(layer.neurons.device.type, enabled=False):
        energies = [layer.regularizer(x) for x in arguments(layer, working_copy(layer.neurons))]
    if any(energy.ndim for energy in energies):
        got = [list(energy.shape) for energy in energies]
        raise ValueError(f"expected a scalar as the energy of layer {layer.name!r}, got {got}")
    return torch.stack(energies).mean()


def arguments(layer: Layer, neurons: Tensor) -> list[Tensor]:
    """What to call a regularizer with: ours takes all groups at once, a plug-in one by one."""
    if neurons.ndim == 2 or isinstance(layer.regularizer, Regularizer):
        return [neurons]
    return list(neurons)


def process() -> tuple[int, int]:
    """Rank of this process, and their number: (0, 1) without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_processes(share: Tensor) -> Tensor:
    """The sum of all processes' shares; its gradient is what, averaged over them, is the whole's.

    A collective operation: all processes have to call it.
    """
    return _SumOverProcesses.apply(share)


class _SumOverProcesses(torch.autograd.Function):
    """The gradients of the shares, which are averaged later, are to be added up."""

    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        total = share.to(wide_dtype(share.device), copy=True)
        dist.all_reduce(total)
        return total.to(share.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output * dist.get_world_size()
