r"""Losses that are a potential of all pairs: uniformity, HUG and UniformFace."""

from __future__ import annotations

import math
from typing import Any

import torch
from mhe_core import hyperspherical_energy
from mhe_core.energy.potential import Gaussian
from mhe_core.energy.rows import directions, working_copy
from mhe_core.regularizers.arguments import check_number
from torch import Tensor

from mhe_uniformity._base import Published
from mhe_uniformity._pairs import sum_over_all_pairs

__all__ = ["HUG", "UniformFace", "Uniformity"]


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
        t: how far the potential falls, > 0; 2 in the paper, 1 in lightly.

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
        self.t = t

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        if len(x) == 1:
            return x.sum() * 0
        mean = hyperspherical_energy(x, potential=Gaussian(self.t))
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()

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

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        if self.variant == "paper" or len(x) == 1:
            return hyperspherical_energy(x, s=2.0)
        x = working_copy(x)
        u = directions(x)
        with torch.no_grad():
            apart = sum_over_all_pairs(u, lambda q: (q > 0).to(q.dtype))
        total = sum_over_all_pairs(u, reciprocal_of_apart)
        return total / apart.clamp_min(1.0)

    def prepared(self, neurons: Tensor) -> Tensor:
        """As they are: the energy does the rest, without copies."""
        return neurons


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

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        pairs = math.comb(len(x), 2)
        if pairs == 0:
            return x.sum() * 0
        if self.variant == "paper":
            return sum_over_all_pairs(directions(x), inverse_distance) / pairs
        return sum_over_all_pairs(x, released_inverse_distance) / (2 * pairs)


def inverse_distance(squares: Tensor) -> Tensor:
    """1 / (1 + distance), without a gradient at distance 0."""
    apart = squares > 0
    return 1 / (1 + squares.masked_fill(~apart, 1.0).sqrt().masked_fill(~apart, 0.0))


def released_inverse_distance(squares: Tensor) -> Tensor:
    """1 / (1 + distance), and 0 at distance 0."""
    return inverse_distance(squares) * (squares > 0)


def reciprocal_of_apart(squares: Tensor) -> Tensor:
    """1 / q, and 0 at 0."""
    apart = squares > 0
    return squares.masked_fill(~apart, 1.0).reciprocal() * apart
