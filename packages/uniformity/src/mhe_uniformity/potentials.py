r"""Losses that are a potential of all pairs: uniformity, HUG and UniformFace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from mhe_core import hyperspherical_energy
from mhe_core.energy.potential import Gaussian, Potential, Riesz
from mhe_core.energy.rows import directions, wide_dtype, working_copy
from mhe_core.regularizers.arguments import check_number
from torch import Tensor

from mhe_uniformity._base import Published
from mhe_uniformity._pairs import sum_over_all_pairs

__all__ = ["HUG", "InverseDistance", "UniformFace", "Uniformity"]

LARGEST_T_IN_FLOAT32, LARGEST_T = 20, 170  # at which exp(−4t) is a normal number, in float64 too


class Uniformity(Published):
    r"""Uniformity: the logarithm of the mean Gaussian potential.

    .. math:: \log \frac{2}{N(N-1)} \sum_{i<j} e^{-t \lVert u_i - u_j \rVert^2}

    Wang and Isola, *Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere*, ICML 2020, arXiv 2005.10242; a loss on features, here on
    neurons. Published weight: 1. In [−4t, 0]; 0 for a single neuron.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"``.
        t: how far the potential falls, above 0 and up to 170; 2 in the paper, 1 in lightly. Above
            20 it is computed in float64, as exp(−4t) leaves float32, and above 170 that, too.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> create_regularizer("uniformity", 3, 3)(torch.eye(3))  # three squared chords of 2
        tensor(-4.)
    """

    paper = "Wang and Isola, ICML 2020, arXiv 2005.10242"
    published_weight = 1.0
    published_output_weight = 1.0
    variants = ("paper",)

    def __init__(
        self, num_neurons: int, dim: int, *, variant: str = "paper", t: float = 2.0
    ) -> None:
        super().__init__(num_neurons, dim, variant=variant)
        check_number("t", t, positive=True)
        if t > LARGEST_T:
            raise ValueError(f"expected t as a number up to {LARGEST_T}, got {t!r}")
        self.t = t

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        if len(x) == 1:
            return x.sum() * 0
        wide = x.to(wide_dtype(x.device)) if self.t > LARGEST_T_IN_FLOAT32 else x
        mean = hyperspherical_energy(wide, potential=Gaussian(self.t))
        value = mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
        return value.to(torch.promote_types(x.dtype, torch.float32))

    def prepared(self, neurons: Tensor) -> Tensor:
        """As they are: the energy does the rest, without copies."""
        return neurons

    def options(self) -> dict[str, Any]:
        """The hyperparameters."""
        return {**super().options(), "t": self.t}


class HUG(Published):
    r"""Hyperspherical uniformity gap, its between-class term: the MHE of class vectors.

    .. math:: \frac{2}{N(N-1)} \sum_{i<j} \frac{1}{\lVert u_i - u_j \rVert^2}

    *Generalizing and Decoupling Neural Collapse via Hyperspherical Uniformity Gap*, ICLR 2023,
    arXiv 2303.06484; the Riesz energy with s = 2. Published weight: 1. The within-class term, which
    needs features, is not part of it. The program (``variant="released"``) leaves out pairs whose
    distance is exactly 0; the paper's variant has core's potential, which stops growing there.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"`` or ``"released"``.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> create_regularizer("hug", 3, 3)(torch.eye(3))
        tensor(0.5000)
    """

    paper = "ICLR 2023, arXiv 2303.06484"
    published_weight = 1.0
    published_output_weight = 1.0
    directional = ("paper", "released")

    @property
    def potential(self) -> Potential | None:  # type: ignore[override]
        """Riesz's with s = 2; the program's mean is of those pairs only that are apart."""
        return Riesz(2.0) if self.variant == "paper" else None

    @property
    def compiles(self) -> bool:  # type: ignore[override]
        """The program's sum is one of PyTorch's functions in Python."""
        return self.variant == "paper"

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        if self.variant == "paper" or len(x) == 1:
            return hyperspherical_energy(x, s=2.0)
        dtype = torch.promote_types(x.dtype, torch.float32)
        u = directions(working_copy(x).to(wide_dtype(x.device)))
        with torch.no_grad():
            apart = sum_over_all_pairs(u, lambda q: (q != 0).to(q.dtype))
        total = sum_over_all_pairs(u, reciprocal_of_apart)
        return (total / apart.clamp_min(1.0)).to(dtype)

    def prepared(self, neurons: Tensor) -> Tensor:
        """As they are: the energy does the rest, without copies."""
        return neurons


@dataclass(frozen=True)
class InverseDistance(Potential):
    r"""UniformFace's potential :math:`1 / (1 + \lVert u - v \rVert)`, from 1/3 to 1.

    Example:
        >>> InverseDistance().of_cosine(-1.0)  # u and −u are at a chord of 2
        0.3333333333333333
    """

    def value(self, squared_chord: Tensor) -> Tensor:
        """Of the squared chord."""
        return 1 / (1 + squared_chord.sqrt())

    def value_and_derivative(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """The potential and its derivative with respect to the cosine."""
        chord = (2 - 2 * c).sqrt_()
        F = (1 + chord).reciprocal_()
        return F, F.square().div_(chord)


INVERSE_DISTANCE = InverseDistance()  # one for all, so that a compiled program finds it again


class UniformFace(Published):
    r"""UniformFace: the mean inverse of one plus the distance.

    .. math:: \frac{2}{N(N-1)} \sum_{i<j} \frac{1}{1 + \lVert u_i - u_j \rVert}

    Duan, Lu and Zhou, *UniformFace*, CVPR 2019; meant for class vectors. Published weight: 1, in an
    unofficial program, as no other was found. That (``variant="released"``) takes the neurons
    themselves in place of their directions, divides by N(N − 1), and leaves out pairs whose
    distance is exactly 0.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"`` or ``"released"``.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> create_regularizer("uniformface", 3, 3)(torch.eye(3))  # 1 / (1 + √2)
        tensor(0.4142)
    """

    paper = "Duan et al., CVPR 2019"
    published_weight = 1.0
    published_output_weight = 1.0

    @property
    def potential(self) -> Potential | None:  # type: ignore[override]
        """The inverse distance; the program has neurons in place of directions."""
        return INVERSE_DISTANCE if self.variant == "paper" else None

    @property
    def compiles(self) -> bool:  # type: ignore[override]
        """The program's sum is one of PyTorch's functions in Python."""
        return self.variant == "paper"

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        if self.variant == "paper":
            return hyperspherical_energy(x, potential=INVERSE_DISTANCE)
        pairs = math.comb(len(x), 2)
        if pairs == 0:
            return x.sum() * 0
        dtype = torch.promote_types(x.dtype, torch.float32)
        wide = working_copy(x).to(wide_dtype(x.device))
        return (sum_over_all_pairs(wide, released_inverse_distance) / (2 * pairs)).to(dtype)

    def prepared(self, neurons: Tensor) -> Tensor:
        """As they are: the energy does the rest, without copies."""
        return neurons


def released_inverse_distance(squares: Tensor) -> Tensor:
    """1 / (1 + distance), and 0 at distance 0, without a gradient there."""
    apart = squares != 0
    return 1 / (1 + squares.masked_fill(~apart, 1.0).sqrt()) * apart


def reciprocal_of_apart(squares: Tensor) -> Tensor:
    """1 / q, and 0 at 0."""
    apart = squares != 0
    return squares.masked_fill(~apart, 1.0).reciprocal() * apart
