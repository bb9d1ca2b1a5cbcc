"""The energies of a network's layers, equal layers in one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mhe_core.energy import hyperspherical_energy
from mhe_core.energy.potential import Riesz
from mhe_core.energy.rows import working_copy
from mhe_core.registry import PluginError
from mhe_core.regularizers import MHE, HalfSpaceMHE, Regularizer

__all__ = ["Layer", "arguments", "blamed", "layer_energies", "riesz_of"]

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


def riesz_of(regularizer: nn.Module) -> Riesz | None:
    """The potential, where the regularizer is the energy of its neurons and nothing else."""
    if type(regularizer) not in (MHE, HalfSpaceMHE):
        return None
    r: Any = regularizer
    return Riesz(float(r.s), r.distance, r.half_space, r.convention)


def called(layer: Layer) -> Tensor:
    """What the regularizer returns for the layer's neurons."""
    with torch.autocast(layer.neurons.device.type, enabled=False), blamed(layer):
        energies = [layer.regularizer(x) for x in arguments(layer, working_copy(layer.neurons))]
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
        if ours or isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise PluginError(
            f"the regularizer {kind.__module__}.{kind.__qualname__} fails on layer "
            f"{layer.name!r}: {type(error).__name__}: {error}"
        ) from error


def arguments(layer: Layer, neurons: Tensor) -> list[Tensor]:
    """What to call a regularizer with: ours takes all groups at once, a plug-in one by one."""
    if neurons.ndim == 2 or isinstance(layer.regularizer, Regularizer):
        return [neurons]
    return list(neurons)
