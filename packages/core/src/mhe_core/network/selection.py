"""Which of a network's layers are regularized."""

from __future__ import annotations

from torch import nn

from mhe_core.energy.potential import Riesz
from mhe_core.network._weight import Weight
from mhe_core.network.neurons import Split, named_weights
from mhe_core.network.patterns import Patterns, matching
from mhe_core.regularizers import MHE

__all__ = ["cannot_spread", "neuron_layers", "readable"]


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


def cannot_spread(regularizer: nn.Module, N: int, d: int) -> str | None:
    """Why the directions of N neurons in d dimensions cannot be spread; None if they can.

    In one dimension all are the same or opposite. A Riesz potential with s ≥ d − 1 has no finite
    mean over random directions, and the least energy of N grows with N without bound. So few that
    axes (half-space: N ≤ d) or a simplex (full space: N ≤ d + 1) hold them all are apart anyway.
    """
    if d == 1:
        return "one dimension, in which directions cannot be spread"
    s = riesz_power(regularizer)
    most = d if getattr(regularizer, "half_space", False) else d + 1
    if s is not None and s >= d - 1 and most < N:
        return f"{N} neurons in {d} dimensions, where random ones' energy is infinite (s ≥ d − 1)"
    return None


def riesz_power(regularizer: nn.Module) -> float | None:
    """The s of a regularizer with Riesz's potential, of projections of the neurons, too."""
    if isinstance(regularizer, MHE):
        return regularizer.s
    potential = getattr(regularizer, "potential", None)
    return potential.s if isinstance(potential, Riesz) else None
