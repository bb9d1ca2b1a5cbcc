"""The length of the neurons' sum: r-MHP."""

from __future__ import annotations

import torch
from mhe_core.energy.rows import directions
from torch import Tensor

from mhe_uniformity._base import Published

__all__ = ["RMHP"]


class RMHP(Published):
    r"""Relaxed maximum hyperspherical polarization: the length of the sum of the directions.

    .. math:: \left\lVert \sum_i u_i \right\rVert

    Liu et al., *Learning with Hyperspherical Uniformity*, AISTATS 2021, arXiv 2103.01649.
    Published weights: 0.01 in hidden layers, 0.1 in the output layer. The program
    (``variant="released"``) adds up the neurons themselves, which it can then lower by shrinking
    them. At a sum of zero, where the program's gradient is not a number, it is zero.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"`` or ``"released"``.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> create_regularizer("rmhp", 4, 4)(torch.eye(4))
        tensor(2.)
    """

    paper = "Liu et al., AISTATS 2021, arXiv 2103.01649"
    published_weight = 0.01
    published_output_weight = 0.1

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        rows = directions(x) if self.variant == "paper" else x
        return torch.linalg.vector_norm(rows.sum(0))
