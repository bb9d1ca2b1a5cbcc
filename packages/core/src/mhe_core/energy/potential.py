"""Riesz potentials and their derivatives as functions of cosines, for tiles of many pairs."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["CONVENTIONS", "DISTANCES", "NEAR", "Riesz", "check_options"]

DISTANCES = ("euclidean", "angular")
CONVENTIONS = ("paper", "released_code")

# Below this squared chord, 2 − 2c has lost too many digits to cancellation (at 0.25 it keeps six
# of float32's seven): nearer pairs are measured by the difference of the vectors.
NEAR = 0.25


class Riesz(NamedTuple):
    """The potential F of a pair of neurons, with the options of ``hyperspherical_energy``.

    In half space, F is the sum of the potentials of the pairs (u, v) and (u, −v).
    """

    s: float
    distance: str
    half_space: bool
    convention: str

    def of_cosines(self, c: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """F / ``factor`` and scale · dF/dc, for cosines within ±``largest_cosine``."""
        scale = scale * self.factor
        if self.half_space and self.distance == "euclidean" and self.s == 2:
            F = torch.rsub(c.square(), 1).reciprocal_()  # 1/(2 − 2c) + 1/(2 + 2c)
            return F, F.square().mul_(c).mul_(2 * scale)
        F, dF = self._of_one_side(c)
        if self.half_space:
            F_opposite, dF_opposite = self._of_one_side(-c)
            F, dF = F.add_(F_opposite), dF.sub_(dF_opposite)
        if self.distance == "angular":
            dF.mul_((1 - c.square()).rsqrt_())
            return F, dF.mul_(-scale / math.pi if self.smoothing else -scale)
        return F, dF.mul_(-2 * scale)

    def _of_one_side(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm or power of the squared chord or the angle, and its derivative with that."""
        if self.distance == "euclidean":
            z, exponent = torch.rsub(c, 2, alpha=2), -self.s / 2
        else:
            z, exponent = c.acos(), -self.s
            if self.smoothing:
                z = z.div_(math.pi).add_(1e-4)
        if self.s == 0:
            return z.log(), z.reciprocal()
        F = z.pow(exponent)
        return F, (F / z).mul_(exponent)

    @property
    def smoothing(self) -> float:
        """An entry that the neurons' lengths have beside their own: 1e-2 is √1e-4."""
        return 0.0 if self.convention == "paper" else 1e-2

    @property
    def factor(self) -> float:
        """What the logarithm or the power is multiplied by."""
        released = self.convention == "released_code"
        if self.s == 0:
            return -0.5 if self.distance == "euclidean" and not released else -1.0
        return 0.1 if self.distance == "angular" and released else 1.0

    def largest_cosine(self, dtype: torch.dtype) -> float:
        """Pairs beyond it have cosines with too few digits, or a potential that has to be cut."""
        smallest = smallest_squared_chord(self.s, dtype)
        cosine = 1 - max(NEAR, smallest) / 2
        if self.distance == "angular" and self.convention == "released_code":
            cosine = min(cosine, math.cos(math.pi * min(1.0, math.sqrt(smallest))))
        return cosine

    def range_of_lengths(self, dtype: torch.dtype) -> tuple[float, float]:
        """Lengths whose squares, and slopes divided by their squares, are far from overflow."""
        info = torch.finfo(dtype)
        steepest = steepest_slope(self, dtype)
        return max(info.tiny**0.4, (steepest / info.max * 100) ** 0.5), info.max**0.4

    def of_pairs(self, u: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
        """F of rows u and v as the definition has it, in ``dtype``: accurate, but slow."""
        if self.convention == "paper":
            near, far = (
                (u - v).square().sum(-1).to(dtype),
                (u + v).square().sum(-1).to(dtype),
            )
        else:
            cosines = (u * v).sum(-1).to(dtype)
            near, far = 2 - 2 * cosines, 2 + 2 * cosines
        F = self._of_squared_chords(near, far)
        return F + self._of_squared_chords(far, near) if self.half_space else F

    def of_antipodes(self, squared_lengths: Tensor) -> Tensor:
        """The potential of u and −u, for rows u of those squared lengths."""
        chords = 2 + 2 * squared_lengths
        return self._of_squared_chords(chords, 4 - chords)

    def of_unit_antipodes(self) -> float:
        """The potential of u and −u by the paper's convention."""
        z = 2.0 if self.distance == "euclidean" else math.pi
        return -math.log(z) if self.s == 0 else z**-self.s

    def neighbours(self, N: int) -> int:
        """How many others each of N neurons makes pairs with."""
        return 2 * N - 1 if self.half_space else N - 1

    def _of_squared_chords(self, near: Tensor, far: Tensor) -> Tensor:
        return riesz_potential(near, far, self.s, self.distance, self.convention)


@cache
def steepest_slope(riesz: Riesz, dtype: torch.dtype) -> float:
    """The largest dF/dc of pairs that are not near."""
    largest = riesz.largest_cosine(dtype)
    if largest <= 0:
        return 0.0
    _, dF = riesz.of_cosines(torch.tensor([-largest, largest], dtype=torch.float64), 1.0)
    return dF.abs().max().item()


def riesz_potential(
    squared_chord: Tensor, other_side: Tensor, s: float, distance: str, convention: str
) -> Tensor:
    """Potential of pairs at the given squared chord ‖u − v‖².

    ``other_side`` is ‖u + v‖², which is 4 − ‖u − v‖² but keeps its digits near the antipode.
    """
    smallest = smallest_squared_chord(s, squared_chord.dtype)
    q = squared_chord.clamp_min(smallest)
    if distance == "euclidean":
        if s == 0:
            return -torch.log(q) if convention == "released_code" else -0.5 * torch.log(q)
        return q ** (-s / 2)
    # 2·atan2(‖u − v‖, ‖u + v‖): arccos has no usable gradient near ±1.
    angle = 2 * torch.atan2(q.sqrt(), other_side.clamp_min(smallest).sqrt())
    if convention == "released_code":
        angle = angle / math.pi + 1e-4
    angle = angle.clamp_min(math.sqrt(smallest))
    if s == 0:
        return -torch.log(angle)
    return (0.1 if convention == "released_code" else 1.0) * angle**-s


def smallest_squared_chord(s: float, dtype: torch.dtype) -> float:
    """The squared chord below which a potential stops growing.

    The resolution of the dtype, or where the slope of the potential would overflow.
    """
    info = torch.finfo(dtype)
    return max(info.eps**2, (info.max * 1e-2 / (1 + s)) ** (-1 / (s / 2 + 1)))


def check_options(s: float, distance: str, convention: str) -> None:
    """The part of :func:`check_arguments` that needs no neurons."""
    if isinstance(s, bool) or not isinstance(s, (int, float)):
        raise TypeError(f"expected s as a number, got {type(s).__name__}")
    if not 0 <= s < math.inf:
        raise ValueError(f"expected s as a finite number ≥ 0, got {s}")
    if distance not in DISTANCES:
        raise ValueError(f"expected distance to be one of {DISTANCES}, got {distance!r}")
    if convention not in CONVENTIONS:
        raise ValueError(f"expected convention to be one of {CONVENTIONS}, got {convention!r}")
