"""Layers with very many neurons: at each step, the pairs of some of them with all others."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn

from mhe_core.regularizers.projections import stream

__all__ = ["Anchors"]


class Anchors:
    """The anchors of those layers that have more neurons than are drawn.

    The mean of the energies that M anchors have with all others has the energy of all as its
    expected value, as every neuron is as likely to be one as any other.

    Args:
        most: M, how many of a layer's neurons are drawn; None for no anchors.
        seed: what they are drawn from.

    Raises:
        ValueError: if one of them is out of range.
    """

    def __init__(self, most: int | None, seed: int) -> None:
        for name, value, least in (("anchors", most, 1), ("anchors_seed", seed, 0)):
            if value is None and name == "anchors":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"expected {name} as an integer ≥ {least}, got {value!r}")
        self.most, self.seed = most, seed
        self._numbers: dict[str, int] = {}
        self._drawn: dict[str, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def add(self, name: str, regularizer: nn.Module, N: int) -> None:
        """Take a layer of N neurons, if they are too many and its regularizer takes anchors."""
        if self.most is not None and self.most < N and getattr(regularizer, "takes_anchors", False):
            self._numbers[name] = N
            self._drawn[name] = torch.empty(self.most, dtype=torch.int64, device="cpu")

    def draw(self, step: int) -> None:
        """Draw those of a step, into memory that a compiled program knows.

        They are a function of seed, step and the layer's name: all processes have the same, and a
        run that goes on has those that it would have had.
        """
        for name, N in self._numbers.items():
            key = stream(self.seed, step, zlib.crc32(name.encode()))
            generator = torch.Generator("cpu").manual_seed(key)
            order = torch.randperm(N, generator=generator, device="cpu")
            self._drawn[name].copy_(order[: self.most])

    def of(self, name: str) -> Tensor | None:
        """A layer's anchors ``[M]``; None where all pairs count."""
        return self._drawn.get(name)
