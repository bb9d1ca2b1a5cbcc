"""Conventions: the constants of the definition, and those of the published programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["CONVENTIONS", "Constants", "Convention", "ConventionName", "convention_named"]

ConventionName = Literal["paper", "released_code"]


@dataclass(frozen=True)
class Constants:
    """Of a distance: the potential is factor · f(scale · measure + offset)."""

    scale: float = 1.0
    offset: float = 0.0
    log_factor: float = 1.0  # for s = 0
    power_factor: float = 1.0


@dataclass(frozen=True)
class Convention:
    """The numbers in which the published programs differ from the paper.

    Attributes:
        smoothing: an entry that the neurons' norms have beside their own: 1e-2 is √1e-4.
        constants: by the name of the distance; those of the definition where there are none.
    """

    smoothing: float = 0.0
    constants: Mapping[str, Constants] = field(default_factory=dict)


CONVENTIONS: dict[str, Convention] = {
    "paper": Convention(),
    "released_code": Convention(
        smoothing=1e-2,
        constants={
            "euclidean": Constants(log_factor=2.0),
            "angular": Constants(scale=1 / math.pi, offset=1e-4, power_factor=0.1),
        },
    ),
}


def convention_named(name: str) -> Convention:
    """The convention of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in CONVENTIONS:
        raise ValueError(f"expected convention to be one of {tuple(CONVENTIONS)}, got {name!r}")
    return CONVENTIONS[name]
