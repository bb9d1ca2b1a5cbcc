r"""Potentials: what two directions pay for being near each other.

A potential f is a function of the squared chord :math:`q = \lVert u - v \rVert^2 = 2 - 2c` of two
unit vectors with cosine c. The Riesz s-potential (Liu et al., NeurIPS 2018, eq. 1) is

.. math:: f_s(z) = z^{-s} \;(s > 0), \qquad f_0(z) = \log(1/z),

of a distance z: the chord :math:`\sqrt q` or the angle :math:`\arccos c`, see distances.py; the
constants of the published programs are in conventions.py. How many pairs there are and how they are
added up is no matter of these files.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from mhe_core.energy.conventions import CONVENTIONS, Constants, ConventionName, convention_named
from mhe_core.energy.distances import DISTANCES, DistanceName
from mhe_core.energy.potential_base import Potential, potential_numbered

__all__ = [
    "CONVENTIONS",
    "DISTANCES",
    "ConventionName",
    "DistanceName",
    "Gaussian",
    "Potential",
    "Riesz",
    "convention_named",
    "potential_with",
]


def potential_with(key: str) -> Potential:
    """The potential whose ``key`` this is."""
    if key.startswith("#"):
        return potential_numbered(int(key[1:]))
    kind, *fields = key.split("|")
    if kind == "gaussian":
        return Gaussian(float(fields[0]))
    s, distance, convention = fields
    return Riesz(float(s), cast(DistanceName, distance), cast(ConventionName, convention))


@dataclass(frozen=True)
class Riesz(Potential):
    """The Riesz s-potential z⁻ˢ of a distance z, for s = 0 log(1/z).

    Attributes:
        s: the power, a real number ≥ 0.
        distance: ``"euclidean"``, the chord, or ``"angular"``, the angle in radians.
        convention: ``"paper"`` or ``"released_code"``.

    Raises:
        TypeError: if ``s`` is not a number.
        ValueError: if ``s`` is negative or not finite, or there is no such distance or convention.

    Example:
        >>> Riesz(1.0).of_cosine(-1.0)  # u and −u are at a chord of 2
        0.5
    """

    s: float = 2.0
    distance: DistanceName = "euclidean"
    convention: ConventionName = "paper"

    def __post_init__(self) -> None:
        if isinstance(self.s, bool) or not isinstance(self.s, (int, float)):
            raise TypeError(f"expected s as a number, got {type(self.s).__name__}")
        if not 0 <= self.s < math.inf:
            raise ValueError(f"expected s as a finite number ≥ 0, got {self.s}")
        if self.distance not in DISTANCES:
            known = tuple(DISTANCES)
            raise ValueError(f"expected distance to be one of {known}, got {self.distance!r}")
        convention_named(self.convention)

    @property
    def _constants(self) -> Constants:
        return CONVENTIONS[self.convention].constants.get(self.distance, Constants())

    @property
    def _factor_and_exponent(self) -> tuple[float, float]:
        """Of the logarithm (exponent 0) or the power of the measure."""
        exponent, constants = DISTANCES[self.distance].exponent, self._constants
        if self.s == 0:
            return -exponent * constants.log_factor, 0.0
        # Not 0 for the least s > 0 there are: that would be the logarithm.
        return constants.power_factor, -exponent * max(self.s, sys.float_info.min)

    @property
    def smoothing(self) -> float:  # type: ignore[override]
        """Of the convention."""
        return CONVENTIONS[self.convention].smoothing

    def value(self, squared_chord: Tensor) -> Tensor:
        """The potential of pairs at that squared chord."""
        return self.of_chords(squared_chord, 4 - squared_chord)

    def of_chords(self, near: Tensor, far: Tensor) -> Tensor:
        """The potential from ‖u − v‖² and ‖u + v‖²."""
        distance, constants = DISTANCES[self.distance], self._constants
        smallest = self.smallest_squared_chord(near.dtype)
        z = distance.of_chords(near.clamp_min(smallest), far.clamp_min(smallest))
        if constants != Constants():
            z = constants.scale * z + constants.offset
        z = z.clamp_min(smallest ** (0.5 / distance.exponent))
        factor, exponent = self._factor_and_exponent
        return factor * (torch.log(z) if exponent == 0 else z**exponent)

    def value_and_derivative(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """The potential and its derivative with respect to the cosine."""
        z, slope = self._measure(c)
        factor, exponent = self._factor_and_exponent
        if exponent == 0:
            return z.log().mul_(factor), z.reciprocal().mul_(factor).mul_(slope)
        F = z.pow(exponent)
        dF = (F / z).mul_(factor * exponent).mul_(slope)
        return (F if factor == 1 else F.mul_(factor)), dF

    def both_sides(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """f(c) + f(−c) and its derivative."""
        factor, exponent = self._factor_and_exponent
        if self.distance == "euclidean" and self.s == 2 and factor == 1:
            F = torch.rsub(c.square(), 1).reciprocal_()  # 1/(2 − 2c) + 1/(2 + 2c)
            return F, F.square().mul_(c).mul_(2)
        z, slope = self._measure(c)
        opposite = self._shifted(DISTANCES[self.distance].of_opposites(c))
        if exponent == 0:  # log z + log z' = log zz'
            product = z * opposite
            dF = opposite.sub_(z).div_(product).mul_(factor).mul_(slope)
            return product.log_().mul_(factor), dF
        F, F_opposite = z.pow(exponent), opposite.pow(exponent)
        dF = (F / z).sub_(F_opposite.div(opposite)).mul_(factor * exponent).mul_(slope)
        F.add_(F_opposite)
        return (F if factor == 1 else F.mul_(factor)), dF

    def _measure(self, c: Tensor) -> tuple[Tensor, Tensor | float]:
        """What the logarithm or the power is taken of, and its derivative with the cosine."""
        z, slope = DISTANCES[self.distance].of_cosines(c)
        scale = self._constants.scale
        return self._shifted(z), slope if scale == 1 else slope * scale

    def _shifted(self, z: Tensor) -> Tensor:
        constants = self._constants
        if constants.scale == 1 and constants.offset == 0:
            return z
        return z.mul_(constants.scale).add_(constants.offset)

    def of_cosine(self, c: float) -> float:
        """The potential of one pair; infinite where it has no finite value."""
        constants = self._constants
        z = constants.scale * DISTANCES[self.distance].of_cosine(c) + constants.offset
        factor, exponent = self._factor_and_exponent
        try:
            return factor * (math.log(z) if exponent == 0 else z**exponent)
        except (ValueError, ZeroDivisionError, OverflowError):  # coincident, or too near for s
            return math.inf

    def derivative_of_cosine(self, c: float) -> float:
        """The derivative with respect to the cosine of one pair."""
        return float(self.value_and_derivative(torch.tensor(c, dtype=torch.float64))[1])

    def smallest_squared_chord(self, dtype: torch.dtype) -> float:
        """The resolution of the dtype, or where the gradient of the potential would overflow."""
        info = torch.finfo(dtype)
        smallest: float = max(
            info.eps**2, (info.max * 1e-2 / (1 + self.s)) ** (-1 / (self.s / 2 + 1))
        )
        return smallest

    def largest_cosine(self, dtype: torch.dtype) -> float:
        """Where the scaled and shifted angle is below the smallest, the potential is cut."""
        cosine = super().largest_cosine(dtype)
        if self._constants.offset:
            smallest = math.sqrt(self.smallest_squared_chord(dtype)) / self._constants.scale
            cosine = min(cosine, math.cos(min(math.pi, smallest)))
        return cosine

    @property
    def key(self) -> str:
        """Its fields, so that one made in a compiled program is found, too."""
        return f"riesz|{float(self.s)!r}|{self.distance}|{self.convention}"


@dataclass(frozen=True)
class Gaussian(Potential):
    r"""The Gaussian potential :math:`e^{-t \lVert u - v \rVert^2}`.

    The logarithm of its mean over a batch of features is the uniformity of Wang and Isola (ICML
    2020). It is finite for coincident directions, and for small t about quadratic.

    Attributes:
        t: the inverse width, a finite number > 0.

    Raises:
        TypeError: if ``t`` is not a number.
        ValueError: if ``t`` is not positive and finite.

    Example:
        >>> round(Gaussian(2.0).of_cosine(0.0), 6)  # e⁻⁴
        0.018316
    """

    t: float = 2.0

    def __post_init__(self) -> None:
        if isinstance(self.t, bool) or not isinstance(self.t, (int, float)):
            raise TypeError(f"expected t as a number, got {type(self.t).__name__}")
        if not 0 < self.t < math.inf:
            raise ValueError(f"expected t as a finite number > 0, got {self.t}")

    def value(self, squared_chord: Tensor) -> Tensor:
        """exp(−t·chord²)."""
        return torch.exp(-self.t * squared_chord)

    def value_and_derivative(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """The potential and its derivative with respect to the cosine."""
        F = (c * (2 * self.t)).sub_(2 * self.t).exp_()
        return F, F * (2 * self.t)

    def both_sides(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """f(c) + f(−c) and its derivative."""
        exponent = c * (2 * self.t)
        opposite = torch.rsub(exponent, -2 * self.t).exp_()
        F = exponent.sub_(2 * self.t).exp_()
        return F + opposite, F.sub_(opposite).mul_(2 * self.t)

    @property
    def key(self) -> str:
        """Its width, so that one made in a compiled program is found, too."""
        return f"gaussian|{float(self.t)!r}"
