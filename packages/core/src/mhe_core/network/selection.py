"""Which of a network's layers have neurons, and which of them is the output layer."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from mhe_core.network._in_use import CONVOLUTIONS
from mhe_core.network._weight import Weight
from mhe_core.network.neurons import named_weights
from mhe_core.regularizers import MHE

__all__ = ["cannot_spread", "find_output_layers", "matching", "neuron_layers"]


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


def find_output_layers(
    model: nn.Module, name: str | None = None, *, required: bool = True
) -> list[str]:
    """Names of the output layers: the given one, or those found, one a head of the model.

    Raises:
        ValueError: if the given name is no layer, or none is found and one is ``required``.
    """
    candidates = list(readable(model))
    if name is not None:
        if name not in candidates:
            raise ValueError(f"expected output_layer to be one of {candidates}, got {name!r}")
        return [name]
    mapping = {n: w.module for n, w in neuron_layers(model).items() if maps_channels(w.module)}
    found: list[str] = []
    for head in heads(model):
        inside = set(head.modules())
        within = [name for name, module in mapping.items() if module in inside]
        found += [name for name in within[-1:] if name not in found]
    if required and not found:
        raise ValueError(
            "expected an output layer (what get_classifier() returns, or a Linear layer or 1×1 "
            f"convolution), found none: give output_layer, one of {candidates}, or output=None"
        )
    return found


def heads(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that classify: timm's distilled models have two, side by side."""
    get_classifier = getattr(model, "get_classifier", None)
    classifier = get_classifier() if get_classifier else model
    several = [classifier]
    if isinstance(classifier, (tuple, list, nn.ModuleList)):
        several = list(classifier)
    return [head for head in several if isinstance(head, nn.Module)]


def cannot_spread(regularizer: nn.Module, N: int, d: int) -> str | None:
    """Why the directions of N neurons in d dimensions cannot be spread; None if they can.

    In one dimension all are the same or opposite. A Riesz potential with s ≥ d − 1 has no finite
    mean over random directions, and the least energy of N grows with N without bound. So few that
    axes (half-space: N ≤ d) or a simplex (full space: N ≤ d + 1) hold them all are apart anyway.
    """
    if d == 1:
        return "one dimension, in which directions cannot be spread"
    if not isinstance(regularizer, MHE):
        return None
    most = d if regularizer.half_space else d + 1
    if regularizer.s >= d - 1 and most < N:
        return f"{N} neurons in {d} dimensions, where random ones' energy is infinite (s ≥ d − 1)"
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
