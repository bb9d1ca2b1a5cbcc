"""Which of a network's layers have neurons, and which of them is the output layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from mhe_core.network._in_use import CONVOLUTIONS
from mhe_core.network._weight import Weight
from mhe_core.network.neurons import Split, named_weights
from mhe_core.network.patterns import Patterns, matching
from mhe_core.regularizers import MHE

__all__ = ["cannot_spread", "doubt_about_output", "find_output_layers", "neuron_layers"]


def neuron_layers(
    model: nn.Module, include: Patterns = (), split: Split | None = None
) -> dict[str, Weight]:
    """The model's layers by name, in module order, tied and frozen ones with the others.

    Args:
        model: the network.
        include: patterns of weights to add to those that are covered without being asked.
        split: how fused weights are to be split, see :func:`named_weights`.

    Raises:
        ValueError: if an entry of ``include`` fits no weight.
    """
    weights = readable(model, split)
    included = matching(weights, include, "include")
    return {name: weight for name, weight in weights.items() if weight.usual or name in included}


def readable(model: nn.Module, split: Split | None = None) -> dict[str, Weight]:
    """The weights without those that cannot be read."""
    return {name: w for name, w in named_weights(model, split=split).items() if w.problem is None}


def find_output_layers(
    model: nn.Module,
    names: Patterns | None = None,
    *,
    required: bool = True,
    split: Split | None = None,
) -> list[str]:
    """Names of the output layers: those that are given, or those found, one a head of the model.

    Raises:
        ValueError: if a given name or pattern fits no layer, or none is found and one is
            ``required``.
    """
    candidates = readable(model, split)
    if names is not None:
        given = matching(candidates, names, "output_layer")
        return [name for name in candidates if name in given]
    layers = neuron_layers(model, split=split)
    mapping = {name: w.module for name, w in layers.items() if maps_channels(w.module)}
    found: list[str] = []
    for head in heads(model):
        inside = set(head.modules())
        last = next((module for module in reversed(mapping.values()) if module in inside), None)
        found += [name for name, m in mapping.items() if m is last and name not in found]
    if required and not found:
        raise ValueError(
            "expected an output layer (what get_classifier() returns, or a Linear layer or 1×1 "
            f"convolution), found none: give output_layer, one of {list(candidates)}, or "
            "output=None"
        )
    return found


def doubt_about_output(
    model: nn.Module, guessed: Sequence[str], split: Split | None = None
) -> str | None:
    """Why the output layers that were found may not be those that are meant, and what else may.

    None where the model itself names its classifier, or where the last weight is a Linear layer
    beside which no other one looks like a head.
    """
    if hasattr(model, "get_classifier") or len(guessed) != 1:
        return None
    weights, (name,) = readable(model, split), guessed
    layer = weights[name].module
    after = list(weights)[list(weights).index(name) + 1 :]
    beside = [other for other in weights if other != name and is_beside(other, name, weights)]
    if not isinstance(layer, nn.Linear):
        reason = f"{name!r} is the last 1×1 convolution"
    elif after or beside:
        reason = f"{name!r} is the last Linear layer"
    else:
        return None
    others = f", beside {', '.join(map(repr, beside + after))}" if beside or after else ""
    return f"the output layer is a guess: {reason}{others}"


def is_beside(other: str, name: str, weights: Mapping[str, Weight]) -> bool:
    """Whether a Linear layer looks like another head: what it returns, no layer takes."""
    a, b = weights[other].module, weights[name].module
    if not (isinstance(a, nn.Linear) and isinstance(b, nn.Linear)):
        return False
    widths = {
        m.in_features for m in (w.module for w in weights.values()) if isinstance(m, nn.Linear)
    }
    if a.out_features in widths:
        return False
    siblings = other.rpartition(".")[0] == name.rpartition(".")[0]
    return a.out_features == b.out_features or (siblings and a.in_features == b.in_features)


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
