"""Which of a network's layers have neurons, and which of them is the output layer."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from mhe_core.network._in_use import CONVOLUTIONS
from mhe_core.network._weight import Weight
from mhe_core.network.neurons import named_weights

__all__ = ["find_output_layer", "matching", "neuron_layers"]


def neuron_layers(model: nn.Module, include: Iterable[str] = ()) -> dict[str, Weight]:
    """The model's layers by name, in module order, tied and frozen ones with the others.

    Args:
        model: the network.
        include: names or patterns of weights to add to those that are covered without being asked.

    Raises:
        ValueError: if an entry of ``include`` fits no weight.
    """
    weights = readable(model)
    included = matching(weights, include, "include")
    return {name: weight for name, weight in weights.items() if weight.usual or name in included}


def readable(model: nn.Module) -> dict[str, Weight]:
    """The weights without those that cannot be read."""
    return {name: w for name, w in named_weights(model).items() if w.problem is None}


def find_output_layer(model: nn.Module, name: str | None, *, required: bool) -> str | None:
    """Name of the output layer: the given one, or the one found; None if there is none.

    Raises:
        ValueError: if the given name is no layer, or none is found and it is ``required``.
    """
    candidates = list(readable(model))
    if name is not None:
        if name not in candidates:
            raise ValueError(f"expected output_layer to be one of {candidates}, got {name!r}")
        return name
    get_classifier = getattr(model, "get_classifier", None)
    head = get_classifier() if get_classifier else model
    inside = set(head.modules()) if isinstance(head, nn.Module) else set()
    for name, weight in reversed(neuron_layers(model).items()):
        if weight.module in inside and maps_channels(weight.module):
            return name
    if required:
        raise ValueError(
            "expected an output layer (what get_classifier() returns, or a Linear layer or 1×1 "
            f"convolution), found none: give output_layer, one of {candidates}, or output=None"
        )
    return None


def maps_channels(module: nn.Module) -> bool:
    """Whether the module is a Linear layer or a 1×1 convolution."""
    if isinstance(module, CONVOLUTIONS):
        return all(size == 1 for size in module.kernel_size)
    return isinstance(module, nn.Linear)


def matching(names: Iterable[str], patterns: Iterable[str], option: str) -> set[str]:
    """Those names that equal or fit one of the patterns; a pattern that fits none is an error."""
    names = list(names)
    found = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fitting = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not fitting:
            raise ValueError(f"expected {option} to fit one of {names}, got {pattern!r}")
        found |= fitting
    return found
