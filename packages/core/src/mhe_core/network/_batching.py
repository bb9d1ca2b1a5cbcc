"""The energies of a network's layers, equal layers in one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mhe_core.autocast import without_autocast
from mhe_core.energy import Potential, hyperspherical_energy
from mhe_core.energy.functional import asked_once
from mhe_core.energy.pair_potential import PairPotential
from mhe_core.energy.rows import waits_are_dear, working_copy
from mhe_core.network._clipping import clipped_neurons
from mhe_core.registry import PluginError

__all__ = ["Layer", "arguments", "blamed", "clipped_term", "layer_terms", "pair_potential_of"]

# Up to so many multiplications for U·Uᵀ, a call costs more than a copy of the neurons; on an
# accelerator up to so many entries, and of neurons of whatever dimension.
WORTH_BATCHING = 2**25
WORTH_PADDING = 2**22


@dataclass
class Layer:
    """A layer's name, regularizer and neurons ``[N, d]`` or ``[groups, N / groups, d]``.

    With anchors ``[M]``, only the pairs of these neurons with all others count. The energy counts
    ``factor`` times.
    """

    name: str
    regularizer: nn.Module
    neurons: Tensor
    anchors: Tensor | None = None
    factor: float | Tensor = 1.0

    @property
    def pair(self) -> PairPotential | None:
        """The potential, where the energy is its mean over all pairs and nothing else."""
        return pair_potential_of(self.regularizer) if self.anchors is None else None

    @property
    def compressed_pair(self) -> PairPotential | None:
        """The same where it is the mean over what the regularizer's ``compressed`` returns."""
        if self.anchors is not None:
            return None
        return pair_potential_of(self.regularizer, "compressed_potential")

    @property
    def cost(self) -> int:
        """Multiplications, of U·Uᵀ or as much of it as is needed."""
        rows = self.neurons.shape[-2] if self.anchors is None else len(self.anchors)
        return self.neurons.numel() * rows

    def weighted(self, energy: Tensor) -> Tensor:
        """The energy times the factor."""
        factor = self.factor
        return energy * (factor.to(energy.dtype) if isinstance(factor, Tensor) else factor)


def layer_terms(layers: Sequence[Layer], clip_factor: float | None = None) -> dict[str, Tensor]:
    """Each layer's energy times its factor, a differentiable scalar, by its name.

    On an accelerator the host waits for it at most once, see :mod:`mhe_core.energy`.

    Args:
        layers: whose.
        clip_factor: bounds what a term does to a neuron, see :mod:`mhe_core.network._clipping`;
            None for no bound.

    Raises:
        ValueError: if a regularizer returns anything but a scalar.
    """
    batches = in_batches(layers)
    computed = asked_once([partial(batch_terms, batch, clip_factor) for batch in batches])
    terms: dict[str, Tensor] = {}
    for batch, of_batch in zip(batches, computed, strict=True):
        for layer, term in zip(batch, of_batch, strict=True):
            terms[layer.name] = term
    return {layer.name: terms[layer.name] for layer in layers}


def in_batches(layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers, those together that are computed in one call: small ones of equal potentials."""
    batches: dict[Hashable, list[Layer]] = defaultdict(list)
    for layer in layers:
        batches[batch_of(layer)].append(layer)
    return list(batches.values())


def batch_of(layer: Layer) -> Hashable:
    """What layers of one batch have in common.

    On an accelerator, where each of a call's many small operations takes as long as a large one,
    neurons of different dimensions have theirs in common, too: zeros at a neuron's end change none
    of its products. So have the energies of what neurons are compressed to.
    """
    x, pair = layer.neurons, layer.pair
    factor = None if isinstance(layer.factor, Tensor) else layer.factor
    common: tuple[Hashable, ...] = (factor, x.dtype, x.device)
    fits = waits_are_dear(x.device) and x.numel() <= WORTH_PADDING
    if pair is None and fits and not torch.compiler.is_compiling():
        pair = layer.compressed_pair
        common = (*common, "compressed", getattr(layer.regularizer, "compressed_shape", ()))
    if pair is None or not (fits or layer.cost <= WORTH_BATCHING):
        return layer.name
    shape = x.shape[:-1] if fits else x.shape
    # By the potential's key: the compiler of torch 2.6 has no dictionaries of our objects.
    return (pair.potential.key, pair.half_space, tuple(shape), *common)


def batch_terms(batch: Sequence[Layer], clip_factor: float | None) -> Sequence[Tensor]:
    """The terms of layers of one batch."""
    layer, pair = batch[0], batch[0].pair
    if not batch[1:]:
        energy = called if pair is None else mean_energy
        return [clipped_term(layer, layer.neurons, clip_factor, energy)]
    widest = max(layer.neurons.shape[-1] for layer in batch)
    x = torch.stack([widened(layer.neurons, widest) for layer in batch])
    probes = None
    if clip_factor is not None:
        x, probes = clipped_neurons(x, clip_factor, len(batch))
    if pair is None:
        pair = layer.compressed_pair
        of_each = zip(batch, x.unbind(), strict=True)
        x = torch.stack([compressed(layer, neurons) for layer, neurons in of_each])
    assert pair is not None
    energies = hyperspherical_energy(x, potential=pair.potential, half_space=pair.half_space)
    energies = energies.view(len(batch), -1).mean(1)
    if isinstance(layer.factor, Tensor):
        of_all = zip(batch, energies.unbind(), strict=True)
        terms = torch.stack([layer.weighted(energy) for layer, energy in of_all])
    else:  # which is that of all
        terms = layer.weighted(energies)
    return (terms if probes is None else terms + probes).unbind()


def compressed(layer: Layer, neurons: Tensor) -> Tensor:
    """What the regularizer compresses the neurons to, which may have been widened."""
    with blamed(layer):
        compress = cast(Callable[[Tensor], Tensor], layer.regularizer.compressed)
        return compress(neurons[..., : layer.neurons.shape[-1]])


def clipped_term(
    layer: Layer,
    neurons: Tensor,
    clip_factor: float | None,
    energy: Callable[[Layer, Tensor], Tensor],
) -> Tensor:
    """The term of one layer, for the energy of its neurons."""
    if clip_factor is None:
        return layer.weighted(energy(layer, neurons))
    neurons, probe = clipped_neurons(neurons, clip_factor)
    return layer.weighted(energy(layer, neurons)) + probe


def widened(neurons: Tensor, d: int) -> Tensor:
    """The neurons with as many zeros at their ends as make it d entries."""
    missing = d - neurons.shape[-1]
    return pad(neurons, (0, missing)) if missing else neurons


def pair_potential_of(regularizer: nn.Module, attribute: str = "potential") -> PairPotential | None:
    """The potential, where the regularizer says that it is the mean of one and nothing else.

    One that has hooks is called, so that they see it.
    """
    potential = getattr(regularizer, attribute, None)
    if not isinstance(potential, Potential):
        return None
    if regularizer._forward_hooks or regularizer._forward_pre_hooks:
        return None
    return PairPotential(potential, bool(getattr(regularizer, "half_space", False)))


def mean_energy(layer: Layer, neurons: Tensor) -> Tensor:
    """The energy of a layer whose regularizer is a potential, the mean over its groups."""
    pair = layer.pair
    assert pair is not None
    energy = hyperspherical_energy(neurons, potential=pair.potential, half_space=pair.half_space)
    return energy.mean() if energy.ndim else energy


def called(layer: Layer, neurons: Tensor) -> Tensor:
    """What the regularizer returns for the layer's neurons."""
    compiling = torch.compiler.is_compiling()  # which has no words for what goes wrong
    blame = nullcontext() if compiling else blamed(layer)
    with without_autocast(neurons.device), blame:
        chosen = () if layer.anchors is None else (layer.anchors,)
        parts = arguments(layer, working_copy(neurons))
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
