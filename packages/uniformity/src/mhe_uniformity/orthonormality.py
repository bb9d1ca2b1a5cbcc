r"""How far the neurons are from orthonormal, entry by entry: SO, DSO and MC.

They act on the neurons as they are, so that lengths, too, are drawn to 1. With the neurons as the
rows of W ``[N, d]``, the Gram matrices :math:`W W^\top` ``[N, N]`` and :math:`W^\top W` ``[d, d]``
have the same eigenvalues but for zeros, so that

.. math:: \lVert W W^\top - I_N \rVert_F^2 = \lVert W^\top W - I_d \rVert_F^2 + N - d,

and the smaller one serves both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mhe_uniformity._base import Published, check_choice

__all__ = ["DSO", "MC", "SIDES", "SO", "gram_deviation", "side_rows"]

SIDES = ("neurons", "dims", "smaller")

ROWS = 512  # of the Gram matrix, at a time, in the search for its largest row


class SO(Published):
    r"""Soft orthogonality: the squared Frobenius distance of the Gram matrix from the identity.

    .. math:: \lVert W W^\top - I_N \rVert_F^2

    Bansal, Chen and Wang, *Can We Gain More from Orthogonality Regularizations in Training Deep
    CNNs?*, NeurIPS 2018, arXiv 1810.09102, whose filters are the columns. No program was published,
    and so no weight. At least N − d.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"``.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> create_regularizer("so", 3, 3)(2 * torch.eye(3))
        tensor(27.)
    """

    paper = "Bansal et al., NeurIPS 2018, arXiv 1810.09102"
    variants = ("paper",)
    directional = ()

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        N, d = x.shape
        return squared_distance(x) + max(N - d, 0)


class DSO(Published):
    r"""Double soft orthogonality: of both Gram matrices.

    .. math:: \lVert W^\top W - I_d \rVert_F^2 + \lVert W W^\top - I_N \rVert_F^2

    Bansal, Chen and Wang, NeurIPS 2018, arXiv 1810.09102. No program was published, and so no
    weight. At least |N − d|.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"``.
        squared: whether both norms are squared, as in the paper; a reuse in
            incremental_learning.pytorch does both.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> create_regularizer("dso", 2, 3)(torch.eye(3)[:2])
        tensor(1.)
    """

    paper = "Bansal et al., NeurIPS 2018, arXiv 1810.09102"
    variants = ("paper",)
    directional = ()

    def __init__(
        self, num_neurons: int, dim: int, *, variant: str = "paper", squared: bool = True
    ) -> None:
        super().__init__(num_neurons, dim, variant=variant)
        self.squared = squared

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        N, d = x.shape
        if self.squared:
            return 2 * squared_distance(x) + abs(N - d)
        # As norms, not as roots, which have no gradient at 0.
        deviation = gram_deviation(x).flatten()
        surplus = deviation.new_full((1,), abs(N - d)).sqrt()
        larger = torch.cat([deviation, surplus])
        return torch.linalg.vector_norm(deviation) + torch.linalg.vector_norm(larger)

    def options(self) -> dict[str, Any]:
        """The hyperparameters."""
        return {**super().options(), "squared": self.squared}


class MC(Published):
    r"""Mutual coherence: the largest absolute row sum of the Gram matrix's deviation.

    .. math:: \max_i \sum_j \lvert W W^\top - I \rvert_{ij}

    Bansal, Chen and Wang, NeurIPS 2018, arXiv 1810.09102, whose filters are the columns. No program
    was published, and so no weight. The Gram matrix is never held: its largest row is sought part
    by part, and that row alone has a gradient.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"``.
        side: which Gram matrix: of the ``"neurons"``, W·Wᵀ, the paper's; of the ``"dims"``, Wᵀ·W;
            or the ``"smaller"`` one, the only one that can become the identity.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> create_regularizer("mc", 3, 3)(2 * torch.eye(3))
        tensor(3.)
    """

    paper = "Bansal et al., NeurIPS 2018, arXiv 1810.09102"
    variants = ("paper",)
    directional = ()

    def __init__(
        self, num_neurons: int, dim: int, *, variant: str = "paper", side: str = "smaller"
    ) -> None:
        super().__init__(num_neurons, dim, variant=variant)
        check_choice("side", side, SIDES)
        self.side = side

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        vectors = side_rows(x, self.side)
        with torch.no_grad():
            parts = torch.arange(len(vectors), device=x.device).split(ROWS)
            sums = torch.cat([row_sums(vectors, rows) for rows in parts])
            largest = sums.argmax(keepdim=True)
        return row_sums(vectors, largest).squeeze(0)

    def options(self) -> dict[str, Any]:
        """The hyperparameters."""
        return {**super().options(), "side": self.side}


def row_sums(vectors: Tensor, rows: Tensor) -> Tensor:
    """Absolute row sums of V·Vᵀ − I for ``[n, m]``, of the given rows."""
    deviation = vectors[rows] @ vectors.mT
    own = torch.zeros_like(deviation).scatter_(1, rows.unsqueeze(1), 1.0)
    return (deviation - own).abs().sum(1)


def squared_distance(x: Tensor) -> Tensor:
    """‖G − I‖² in the Frobenius norm, for the smaller Gram matrix G."""
    return gram_deviation(x).square().sum()


def gram_deviation(x: Tensor) -> Tensor:
    """G − I for the smaller of the Gram matrices of ``[N, d]``."""
    vectors = side_rows(x, "smaller")
    return vectors @ vectors.mT - torch.eye(len(vectors), dtype=x.dtype, device=x.device)


def side_rows(x: Tensor, side: str) -> Tensor:
    """The vectors whose products the Gram matrix has, as rows: ``[N, d]`` or ``[d, N]``."""
    if side == "smaller":
        side = "neurons" if x.shape[0] <= x.shape[1] else "dims"
    return x if side == "neurons" else x.mT
