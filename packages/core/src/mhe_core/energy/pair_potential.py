"""What a pair of neurons pays, in full and in half space, and how many pairs there are."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mhe_core.energy.potential_base import Potential

__all__ = ["PairPotential", "steepest_derivative"]


class PairPotential(NamedTuple):
    """The potential F of a pair of neurons.

    In half space, F is the sum of the potentials of the pairs (u, v) and (u, −v).
    """

    potential: Potential
    half_space: bool

    @property
    def smoothing(self) -> float:
        """An entry that the neurons' norms have beside their own."""
        return self.potential.smoothing

    def value_and_derivative(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """F and dF/dc, for cosines within ±:meth:`Potential.largest_cosine`."""
        if self.half_space:
            return self.potential.both_sides(c)
        return self.potential.value_and_derivative(c)

    def of_pairs(self, u: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
        """F of the pairs of rows ``[P, d]`` of u and v; differentiable, accurate, slow."""
        if self.smoothing == 0:
            near = (u - v).square().sum(-1).to(dtype)
            far = (u + v).square().sum(-1).to(dtype)
            return self.of_chords(near, far)
        cosines = (u * v).sum(-1).to(dtype)  # the rows' norms are not quite 1
        return self.of_chords(2 - 2 * cosines, 2 + 2 * cosines)

    def of_chords(self, near: Tensor, far: Tensor) -> Tensor:
        """F, from ‖u − v‖² and ‖u + v‖²."""
        value = self.potential.of_chords(near, far)
        return value + self.potential.of_chords(far, near) if self.half_space else value

    def neighbours(self, N: int) -> int:
        """How many others each of N neurons makes pairs with."""
        return 2 * N - 1 if self.half_space else N - 1

    def number_of_pairs(self, N: int) -> int:
        """Of N neurons; in half space, of 2N directions."""
        return N * (2 * N - 1) if self.half_space else N * (N - 1) // 2

    def range_of_norms(self, dtype: torch.dtype) -> tuple[float, float]:
        """Norms whose squares, and derivatives divided by their squares, are far from overflow."""
        info = torch.finfo(dtype)
        steepest = steepest_derivative(self, dtype)
        return max(info.tiny**0.4, (steepest / info.max * 100) ** 0.5), info.max**0.4


@lru_cache(maxsize=512)
def steepest_derivative(pair: PairPotential, dtype: torch.dtype) -> float:
    """The largest dF/dc of pairs that are not near."""
    largest = pair.potential.largest_cosine(dtype)
    if largest <= 0:
        return 0.0
    c = torch.linspace(-largest, largest, 65, dtype=torch.float64)
    _, dF = pair.value_and_derivative(c)
    return min(float(dF.abs().max()), sys.float_info.max)
