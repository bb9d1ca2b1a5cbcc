"""Distances of two directions: the chord and the angle."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

__all__ = ["DISTANCES", "Distance", "DistanceName"]

DistanceName = Literal["euclidean", "angular"]


class Distance(ABC):
    """A distance of two unit vectors, by way of a measure that is quick to find.

    Attributes:
        exponent: the distance is the measure to this power.
    """

    exponent: float

    @abstractmethod
    def of_chords(self, near: Tensor, far: Tensor) -> Tensor:
        """The measure, from ‖u − v‖² and ‖u + v‖², both positive."""

    @abstractmethod
    def of_cosines(self, c: Tensor) -> tuple[Tensor, Tensor | float]:
        """The measure and its derivative with respect to the cosine."""

    @abstractmethod
    def of_opposites(self, c: Tensor) -> Tensor:
        """The measure of u and −v, whose derivative is minus that of u and v."""

    @abstractmethod
    def of_cosine(self, c: float) -> float:
        """The measure of one pair."""


class Chord(Distance):
    """‖u − v‖, in [0, 2]; the measure is its square."""

    exponent = 0.5

    def of_chords(self, near: Tensor, far: Tensor) -> Tensor:
        """‖u − v‖²."""
        return near

    def of_cosines(self, c: Tensor) -> tuple[Tensor, float]:
        """2 − 2c."""
        return torch.rsub(c, 2, alpha=2), -2.0

    def of_opposites(self, c: Tensor) -> Tensor:
        """2 + 2c."""
        return torch.add(2, c, alpha=2)

    def of_cosine(self, c: float) -> float:
        """2 − 2c."""
        return max(0.0, 2 - 2 * c)


class Angle(Distance):
    """The angle between u and v in radians, in [0, π]."""

    exponent = 1.0

    def of_chords(self, near: Tensor, far: Tensor) -> Tensor:
        """2·atan2(‖u − v‖, ‖u + v‖): arccos has no usable gradient near ±1."""
        return 2 * torch.atan2(near.sqrt(), far.sqrt())

    def of_cosines(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Arccos c."""
        return c.acos(), (1 - c.square()).rsqrt_().neg_()

    def of_opposites(self, c: Tensor) -> Tensor:
        """Arccos −c: the difference from π would have fewer digits."""
        return torch.neg(c).acos_()

    def of_cosine(self, c: float) -> float:
        """Arccos c."""
        return math.acos(c)


DISTANCES: dict[str, Distance] = {"euclidean": Chord(), "angular": Angle()}
