"""The energies of a network's layers, equal layers in one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mhe_core.energy import Potential, hyperspherical_energy
from mhe_core.energy.functional import asked_once
from mhe_core.energy.pair_potential import PairPotential
from mhe_core.energy.rows import working_copy
from mhe_core.registry import PluginError

__all__ = ["Layer", "arguments", "blamed", "layer_energies", "pair_potential_of"]

# Up to so many multiplications for U·Uᵀ, a call costs more than a copy of the neurons.
WORTH_BATCHING = 2**25


@dataclass
class Layer:
    """A layer's name, regularizer and neurons ``[N, d]`` or ``[groups, N / groups, d]``.

    With anchors ``[M]``, only the pairs of these neurons with all others count.
    """

    name: str
    regularizer: nn.Module
    neurons: Tensor
    anchors: Tensor | None = None

    @property
    def pair(self) -> PairPotential | None:
        """The potential, where the energy is its mean over all pairs and nothing else."""
        return pair_potential_of(self.regularizer) if self.anchors is None else None

    @property
    def cost(self) -> int:
        """Multiplications, of U·Uᵀ or as much of it as is needed."""
        rows = self.neurons.shape[-2] if self.anchors is None else len(self.anchors)
        return self.neurons.numel() * rows


def layer_energies(layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Each layer's energy, a differentiable scalar, by its name.

    On an accelerator the host waits for it at most once, see :mod:`mhe_core.energy`.

    Raises:
        ValueError: if a regularizer returns anything but a scalar.
    """
    batches = in_batches(layers)
    computed = asked_once([partial(batch_energies, batch) for batch in batches])
    energies: dict[str, Tensor] = {}
    for batch, of_batch in zip(batches, computed, strict=True):
        for layer, energy in zip(batch, of_batch, strict=True):
            energies[layer.name] = energy
    return {layer.name: energies[layer.name] for layer in layers}


def in_batches(layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers, those together that are computed in one call: small ones of equal potentials."""
    batches: dict[Hashable, list[Layer]] = defaultdict(list)
    for layer in layers:
        pair, x = layer.pair, layer.neurons
        equal: Hashable = layer.name
        if pair is not None and layer.cost <= WORTH_BATCHING:
            # By the potential's key: the compiler of torch 2.6 has no dictionaries of our objects.
            equal = (pair.potential.key, pair.half_space, *x.shape, x.dtype, x.device)
        batches[equal].append(layer)
    return list(batches.values())


def batch_energies(batch: Sequence[Layer]) -> Sequence[Tensor]:
    """The energies of layers of one batch."""
    pair = batch[0].pair
    if pair is None:
        return [called(batch[0])]
    x = torch.stack([layer.neurons for layer in batch]) if batch[1:] else batch[0].neurons[None]
    energies = hyperspherical_energy(x, potential=pair.potential, half_space=pair.half_space)
    return energies.view(len(batch), -1).mean(1).unbind()


def pair_potential_of(regularizer: nn.Module) -> PairPotential | None:
    """The potential, where the regularizer says that it is the mean of one and nothing else.

    One that has hooks is called, so that they see it.
    """
    potential = getattr(regularizer, "potential", None)
    if not isinstance(potential, Potential):
        return None
    if regularizer._forward_hooks or regularizer._forward_pre_hooks:
        return None
    return PairPotential(potential, bool(getattr(regularizer, "half_space", False)))


def called(layer: Layer) -> Tensor:
    """What the regularizer returns for the layer's neurons."""
    compiling = torch.compiler.is_compiling()  # which has no words for what goes wrong
    blame = nullcontext() if compiling else blamed(layer)
    with torch.autocast(layer.neurons.device.type, enabled=False), blame:
        chosen = () if layer.anchors is None else (layer.anchors,)
        parts = arguments(layer, working_copy(layer.neurons))
        energies = [layer.regularizer(x, *chosen) for x in parts]
    if any(energy.ndim for energy in energies):
        got = [list(energy.shape) for energy in energies]
        raise PluginError(f"expected a scalar as the energy of layer {layer.name!r}, got {got}")
    return torch.stack(energies).mean()


@contextmanager
def blamed(layer: Layer) -> Iterator[None]:
    """Name the layer, and the regularizer if it is a third party's, in what goes wrong with it."""
    kind = type(layer.regularizer)
    try:
        yield
    except Exception as error:
        ours = kind.__module__.startswith("mhe_core.")
        if ours and type(error) in (TypeError, ValueError):
            raise type(error)(f"layer {layer.name!r}: {error}") from error
        if ours or isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise PluginError(
            f"the regularizer {kind.__module__}.{kind.__qualname__} fails on layer "
            f"{layer.name!r}: {type(error).__name__}: {error}"
        ) from error


def arguments(layer: Layer, neurons: Tensor) -> list[Tensor]:
    """What to call a regularizer with: all groups at once if it takes them, else one by one."""
    if neurons.ndim == 2 or getattr(layer.regularizer, "batched", False):
        return [neurons]
    return list(neurons)
