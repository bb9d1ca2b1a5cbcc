"""Which layers a NetworkRegularizer covers, by which regularizer, and why not the others."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import nn

from mhe_core.network._output import find_output_layers
from mhe_core.network._weight import Weight
from mhe_core.network.neurons import Split, weight_at
from mhe_core.network.patterns import Patterns, matching
from mhe_core.network.rules import Rule, Rules, Schedule, layer_rules, made
from mhe_core.network.selection import cannot_spread, neuron_layers

__all__ = ["Plan", "plan_layers"]


@dataclass
class Plan:
    """What becomes of each layer, by its name, in the network's order.

    Attributes:
        output_layers: the layers that count as output layers, covered or not.
        regularizers: of the layers that are covered.
        num_neurons: their N, in a group where there are groups.
        weights: their factors, where a rule gives them one; else None.
        left_out: why each of the others is.
    """

    output_layers: list[str]
    regularizers: dict[str, nn.Module] = field(default_factory=dict)
    num_neurons: dict[str, int] = field(default_factory=dict)
    weights: dict[str, Schedule | None] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def plan_layers(
    model: nn.Module,
    *,
    hidden: Rule,
    output: Rule,
    output_layer: Patterns | None,
    exclude: Patterns,
    include: Patterns,
    rules: Rules | None,
    split: Split | None,
) -> Plan:
    """Choose the layers, and make their regularizers, on the layers' devices."""
    outputs = find_output_layers(model, output_layer, required=output.kind is not None, split=split)
    layers = neuron_layers(model, include, split)
    layers.update({name: weight_at(model, name, split=split) for name in outputs})
    asked_for = matching(layers, include, "include")
    if output_layer is not None:
        asked_for |= set(outputs)
    excluded = matching(layers, exclude, "exclude")
    roles = {name: output if name in outputs else hidden for name in layers}
    chosen = layer_rules(layers, roles, rules)

    found = Plan(outputs)
    taken: dict[Hashable, str] = {}
    # Output layers first, as this is where a weight that they share is to be counted.
    for name in sorted(layers, key=lambda name: name not in outputs):
        weight, rule = layers[name], chosen[name]
        reason = None
        if rule.kind is None:
            reason = rule.origin
        elif name in excluded:
            reason = "excluded"
        elif weight.identity in taken:
            reason = f"shares the weight of {taken[weight.identity]!r}"
        else:
            reason = cover(found, name, weight, rule, asked_for=name in asked_for)
        if reason is None:
            taken[weight.identity] = name
        else:
            found.left_out[name] = reason
    found.regularizers = {n: found.regularizers[n] for n in layers if n in found.regularizers}
    return found


def cover(plan: Plan, name: str, weight: Weight, rule: Rule, *, asked_for: bool) -> str | None:
    """Make a layer's regularizer, or say why it is left out."""
    neurons = weight.neurons()
    *_, N, d = neurons.shape
    if N < 2:
        return "fewer than two neurons, or than two in a group"
    regularizer = made(rule, N, d)
    if not asked_for and (reason := cannot_spread(regularizer, N, d)):
        return reason
    plan.regularizers[name] = regularizer.to(neurons.device)
    plan.num_neurons[name], plan.weights[name] = N, rule.weight
    return None
