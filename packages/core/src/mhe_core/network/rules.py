"""Which regularizer each layer gets, with which hyperparameters, and how much it counts."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mhe_core.network._weight import Weight
from mhe_core.network.patterns import Pattern, matching
from mhe_core.registry import create_regularizer

__all__ = ["Kind", "Rule", "Rules", "Schedule", "check_number", "layer_rules", "made", "weight_now"]

Schedule = float | Callable[[int], float]
Kind = str | Callable[..., nn.Module] | nn.Module | None
Rules = Mapping[Any, Mapping[str, Any]]  # by Pattern, in which Mapping is invariant


@dataclass(frozen=True)
class Rule:
    """What is done with a layer.

    Attributes:
        kind: the regularizer: a registered name, a class or factory that is called as
            ``factory(num_neurons, dim, **options)``, a module that is used as it is, or None.
        options: hyperparameters.
        weight: the factor of its energy, or a function of the step; None for that of its role.
        origin: where it was said that there is none, for messages.
    """

    kind: Kind
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: Schedule | None = None
    origin: str = ""

    def changed(self, pattern: Pattern, settings: Mapping[str, Any]) -> Rule:
        """This rule with these settings; another regularizer has options of its own."""
        options = dict(settings)
        weight = options.pop("weight", self.weight)
        if "regularizer" in options:
            kind = options.pop("regularizer")
            return Rule(kind, options, weight, f"rule {shown(pattern)}: regularizer=None")
        if self.kind is None:
            return self
        return Rule(self.kind, {**self.options, **options}, weight)


def layer_rules(
    layers: Mapping[str, Weight], roles: Mapping[str, Rule], rules: Rules | None
) -> dict[str, Rule]:
    """Each layer's rule: its role's, changed by the first of the rules that fits the layer.

    Args:
        layers: the layers by name.
        roles: the rule of each layer's role.
        rules: settings by pattern.

    Raises:
        TypeError: if the rules or one's settings are no mapping, or a weight is no number.
        ValueError: if a pattern fits no layer, or only such as have no regularizer and are given
            none, or a weight is out of range.
    """
    if not isinstance(rules or {}, Mapping):
        raise TypeError(f"expected rules as settings by pattern, got {type(rules).__name__}")
    found: dict[str, Rule] = {}
    for pattern, settings in (rules or {}).items():
        if not isinstance(settings, Mapping):
            raise TypeError(f"expected settings in rule {shown(pattern)}, got {settings!r}")
        if "weight" in settings:
            weight_now(settings["weight"], 0, f"the weight of rule {shown(pattern)}")
        fitting = matching(layers, pattern, "rules")
        if "regularizer" not in settings and all(roles[name].kind is None for name in fitting):
            raise ValueError(
                f"expected rule {shown(pattern)} to name a regularizer for {sorted(fitting)}, as "
                f"{roles[min(fitting)].origin}"
            )
        for name in fitting - found.keys():
            found[name] = roles[name].changed(pattern, settings)
    return {name: found.get(name, roles[name]) for name in layers}


def made(rule: Rule, num_neurons: int, dim: int) -> nn.Module:
    """The regularizer of a rule, for a layer of so many neurons.

    Raises:
        ValueError: if a module is given along with hyperparameters, or was made for another size.
    """
    kind = rule.kind
    if not isinstance(kind, nn.Module):
        assert kind is not None  # such a layer is left out
        return create_regularizer(kind, num_neurons, dim, **rule.options)
    if rule.options:
        raise ValueError(
            f"expected no hyperparameters beside a regularizer that is a module, got "
            f"{dict(rule.options)}: give its class"
        )
    sizes = getattr(kind, "num_neurons", num_neurons), getattr(kind, "dim", dim)
    if sizes != (num_neurons, dim):
        raise ValueError(
            f"expected a {type(kind).__name__} for {num_neurons} neurons of dimension {dim}, got "
            f"one for {sizes[0]} of dimension {sizes[1]}: given its class, each layer gets its own"
        )
    return kind


def weight_now(weight: Schedule, step: int, name: str) -> float:
    """A weight at a step.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is not finite, or below 0.
    """
    value = weight(step) if callable(weight) else weight
    check_number(f"{name} at step {step}" if callable(weight) else name, value)
    return value


def check_number(name: str, value: Any) -> None:
    """Raise an error unless the value is a finite number ≥ 0."""
    if isinstance(value, Tensor):  # a learning rate: to look at it would stall an accelerator
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"expected {name} as a number, got {type(value).__name__}")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"expected {name} as a finite number ≥ 0, got {value!r}")


def shown(pattern: Pattern) -> str:
    """A pattern, in messages."""
    return pattern.__name__ if isinstance(pattern, type) else repr(pattern)
