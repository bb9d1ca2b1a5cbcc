"""What a network's regularizer covers, as what, and why not the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from mhe_core.network._weight import Weight
from mhe_core.network._wrappers import unwrapped

__all__ = ["ParameterRole", "covered_share", "parameter_roles"]

HIDDEN, OUTPUT, LEFT_OUT = "hidden", "output", "left out"


@dataclass(frozen=True)
class ParameterRole:
    """What a network's regularizer does with a parameter.

    Attributes:
        name: the parameter's, as ``named_parameters`` has it.
        shape: its shape.
        role: ``"hidden"``, ``"output"`` or ``"left out"``.
        reason: why it is left out; else which layer it belongs to.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)}: {self.role}, {self.reason}"


def parameter_roles(
    model: nn.Module,
    weights: Mapping[str, Weight],
    covered: Mapping[str, str],
    reasons: Mapping[str, str],
) -> list[ParameterRole]:
    """The role of every parameter of two or more dimensions.

    Args:
        model: the network.
        weights: all weights that are known, by name.
        covered: role of those that are covered.
        reasons: why others are not.
    """
    users: dict[int, list[str]] = {}
    for name, weight in weights.items():
        for source in weight.sources:
            users.setdefault(id(source), []).append(name)
    roles = []
    for name, parameter in unwrapped(model).named_parameters():
        if parameter.ndim < 2:
            continue
        layers = users.get(id(parameter), [])
        layer = next((n for n in layers if n in covered), None)
        if layer is not None and parameter.requires_grad:
            role, reason = covered[layer], f"layer {layer!r}"
        elif not parameter.requires_grad:
            role, reason = LEFT_OUT, "frozen"
        else:
            known = [f"{n!r}: {reasons[n]}" for n in layers if n in reasons]
            role, reason = LEFT_OUT, "; ".join(known) or "not known as the weight of a layer"
        roles.append(ParameterRole(name, tuple(parameter.shape), role, reason))
    return roles


def covered_share(model: nn.Module, roles: list[ParameterRole]) -> float:
    """Part of the numbers in trained parameters of two or more dimensions that is covered."""
    sizes = {name: parameter.numel() for name, parameter in unwrapped(model).named_parameters()}
    trained = [role for role in roles if role.reason != "frozen"]
    total = sum(sizes[role.name] for role in trained)
    covered = sum(sizes[role.name] for role in trained if role.role != LEFT_OUT)
    return covered / total if total else 1.0
