"""Regularizing a whole network: the weighted sum of its layers' energies."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mhe_core.energy.rows import working_copy
from mhe_core.network._batching import Layer, arguments, blamed, layer_energies
from mhe_core.network._clipping import bounded_value, clipped_neurons
from mhe_core.network._processes import process, shared_energies, sum_over_processes
from mhe_core.network._wrappers import unwrapped
from mhe_core.network.neurons import weight_at
from mhe_core.network.selection import cannot_spread, find_output_layers, matching, neuron_layers
from mhe_core.registry import create_regularizer

__all__ = ["NetworkRegularizer"]


class NetworkRegularizer(nn.Module):
    r"""Weighted sum of the energies of a network's layers, to be added to its loss.

    The default weights and energies are those of the published programs of Liu et al. (NeurIPS
    2018): half-space energy in hidden layers, full-space energy, ten times, in the output layer.

    Covered are Linear, Conv1d/2d/3d and ConvTranspose1d/2d/3d layers; the energy of a grouped
    convolution is the mean over its groups. Left out are layers with fewer than two neurons (in a
    group), all but one of the layers that share a weight, and frozen layers for as long as they
    are (``requires_grad`` is False): their energy is a constant. Weights are read anew at each
    call; a parametrized weight is read from its original, see :func:`neuron_matrix`.

    Where ``torch.distributed`` is initialized, each process computes a share of the energies. All
    then have to call :meth:`forward` and :meth:`update`, with the same weights and in the same
    order. The value is the whole; a process's gradient is its own share's times the number of
    processes, so that the *average* over processes, which DistributedDataParallel or one's own
    ``all_reduce`` takes, is the gradient of the whole.

    The parameters stay the model's: ``parameters()`` and ``state_dict()`` have the regularizers'
    own state only.

    Args:
        model: the network, possibly wrapped in DistributedDataParallel or ``torch.compile``;
            layers have the names that they have inside the wrapper.
        hidden: registered name of the hidden layers' regularizer; None leaves these layers out.
        output: registered name of the output layer's regularizer; None leaves this layer out.
        hidden_weight: factor of each hidden layer's energy.
        output_weight: factor of the output layer's energy.
        hidden_options: hyperparameters of the hidden layers' regularizer, such as ``{"s": 1}``.
        output_options: hyperparameters of the output layer's regularizer.
        output_layer: name of the output layer: any module whose ``weight`` has neurons as rows. By
            default what the model's ``get_classifier()`` returns if it has that method (timm; each
            of several heads is an output layer), else the last Linear layer or 1×1 convolution.
        exclude: names of layers to leave out, or patterns such as ``"stem.*"``.
        include: names or patterns of modules to cover beside the above: Embedding layers, and any
            other module whose ``weight`` has neurons as rows.
        share_work: whether the processes of a distributed run share the work; False where each
            has a model of its own.
        clip_factor: τ above; None for the exact value and gradient, whatever they are.

    Raises:
        ValueError: if the output layer is wanted and not found, if a name or pattern fits nothing
            (the message lists the names), or if a weight or an option is out of range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mhe_core import NetworkRegularizer
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> regularizer = NetworkRegularizer(model, hidden_options={"s": 1})
        >>> loss = model(torch.randn(2, 8)).square().mean() + regularizer()
        >>> loss.backward()
        >>> list(regularizer.terms())
        ['0', '2']
    """

    def __init__(
        self,
        model: nn.Module,
        hidden: str | None = "half_mhe",
        output: str | None = "mhe",
        *,
        hidden_weight: float = 1.0,
        output_weight: float = 10.0,
        hidden_options: Mapping[str, Any] | None = None,
        output_options: Mapping[str, Any] | None = None,
        output_layer: str | None = None,
        exclude: Iterable[str] = (),
        include: Iterable[str] = (),
        share_work: bool = True,
        clip_factor: float | None = 1.0,
    ) -> None:
        super().__init__()
        for name, factor in (("hidden_weight", hidden_weight), ("output_weight", output_weight)):
            if not 0 <= factor < math.inf:
                raise ValueError(f"expected {name} as a finite number ≥ 0, got {factor!r}")
        self.hidden_weight = hidden_weight
        self.output_weight = output_weight
        self.share_work = share_work
        if clip_factor is not None and not 0 < clip_factor < math.inf:
            raise ValueError(
                f"expected clip_factor as a finite number above 0, or None, got {clip_factor!r}"
            )
        self.clip_factor = clip_factor

        model = unwrapped(model)
        # Not the model itself, which as an attribute would be registered as a submodule.
        self._weight = partial(weight_at, model)
        self._outputs = find_output_layers(model, output_layer, required=output is not None)
        layers = neuron_layers(model, include)
        layers.update({name: self._weight(name) for name in self._outputs})
        asked_for = matching(layers, include, "include") | {output_layer}
        excluded = matching(layers, exclude, "exclude")

        self.regularizers = nn.ModuleDict()
        taken = set()
        # Output layers first, as this is where a weight that they share is to be counted.
        for name in sorted(layers, key=lambda name: name not in self._outputs):
            is_output = name in self._outputs
            chosen, options = (output, output_options) if is_output else (hidden, hidden_options)
            weight = layers[name]
            if chosen is None or name in excluded or weight.identity in taken:
                continue
            neurons = weight.neurons()
            *_, N, d = neurons.shape
            if N < 2:
                continue
            regularizer = create_regularizer(chosen, N, d, **(options or {}))
            if name not in asked_for and (reason := cannot_spread(regularizer, N, d)):
                if is_output:
                    warnings.warn(
                        f"the output layer {name!r} is left out: {reason}; "
                        f"output_layer={name!r} keeps it",
                        stacklevel=2,
                    )
                continue
            taken.add(weight.identity)
            self.regularizers[key(name)] = regularizer.to(neurons.device)
        self._names = [name for name in layers if key(name) in self.regularizers]

    def forward(self) -> Tensor:
        """``hidden_weight`` × sum of hidden energies + ``output_weight`` × output energy.

        A scalar, in at least float32; 0 where no layer is left. With several processes that share
        the work, all have to call it; its value is the same on all.
        """
        layers = list(self._trained_layers())
        if not layers:
            return torch.zeros(())
        clips = self.clip_factor is not None and torch.is_grad_enabled()
        layers, probes = self._clipped(layers) if clips else (layers, [])
        rank, processes = process() if self.share_work else (0, 1)
        alone = processes == 1
        energies = layer_energies(layers) if alone else shared_energies(layers, rank, processes)
        weighted = [
            (self.output_weight if name in self._outputs else self.hidden_weight) * energy
            for name, energy in energies.items()
        ]
        device = weighted[0].device
        total = torch.stack([energy.to(device) for energy in weighted]).sum()
        if probes:
            total = total + torch.stack([probe.to(device) for probe in probes]).sum()
        total = total if alone else sum_over_processes(total)
        return total if self.clip_factor is None else bounded_value(total)

    def _clipped(self, layers: list[Layer]) -> tuple[list[Layer], list[Tensor]]:
        """The layers with neurons whose gradients will be clipped, and the probes to be added."""
        pairs = [clipped_neurons(layer.neurons, self.clip_factor or math.inf) for layer in layers]
        clipped = [
            layer._replace(neurons=neurons)
            for layer, (neurons, _) in zip(layers, pairs, strict=True)
        ]
        return clipped, [probe for _, probe in pairs]

    def terms(self) -> dict[str, Tensor]:
        """Each layer's unweighted energy, a differentiable scalar, by the layer's name.

        Computed by this process alone, whatever others do: for reports.
        """
        return layer_energies(list(self._trained_layers()))

    def update(self, lr: float) -> None:
        """Advance the regularizers' state; to be called once per training step, before forward.

        Args:
            lr: the network's current learning rate.
        """
        for layer in self._trained_layers():
            update = getattr(layer.regularizer, "update", None)
            if update is None:
                continue
            neurons = layer.neurons.detach()
            with torch.autocast(neurons.device.type, enabled=False), blamed(layer):
                for part in arguments(layer, working_copy(neurons)):
                    update(part, lr)

    def _trained_layers(self) -> Iterator[Layer]:
        """The layers that are not frozen, as they are now."""
        for name in self._names:
            weight = self._weight(name)
            if weight.trained:
                yield Layer(name, self.regularizers[key(name)], weight.neurons())


def key(name: str) -> str:
    """A layer's name as one in a ModuleDict: without dots, and unlike a dict's methods."""
    return "/" + name.replace(".", "/")
