"""The volume that the neurons span in a Gaussian kernel's feature space: MGD."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from mhe_core.energy.rows import directions, wide_dtype
from torch import Tensor

from mhe_uniformity._base import Published
from mhe_uniformity._rows import released_rows

__all__ = ["MGD"]

JITTER = 1e-6  # on the diagonal, as published; without it, coinciding neurons have an infinite loss


class MGD(Published):
    r"""Maximum Gram determinant: minus the log-determinant of a Gaussian kernel's Gram matrix.

    .. math:: -\log\det(K + 10^{-6} I), \qquad K_{ij} = e^{-\lVert u_i - u_j \rVert^2}

    in half space over the 2N directions :math:`\pm u_i`. Liu et al., *Learning with Hyperspherical
    Uniformity*, AISTATS 2021, arXiv 2103.01649. Published weights: 0.01 in hidden layers (half
    space), 0.1 in the output layer (full space).

    In float64 inside, where the device has it: in float32 the program gives nan where N is much
    larger than d. Should Cholesky's factorization fail nevertheless, eigenvalues below the jitter
    are taken for it, so that value and gradient stay finite. Of the half space's Gram matrix
    :math:`\bigl(\begin{smallmatrix} A & B \\ B & A \end{smallmatrix}\bigr)` the determinant is that
    of A + B times that of A − B. Memory and time are those of N × N matrices, in float64.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"``, or ``"released"`` with 1e-4 under the roots of two normalisations.
        half_space: count every neuron together with its antipode.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> create_regularizer("mgd", 3, 3, half_space=False)(torch.eye(3))
        tensor(0.0513)
    """

    compiles = False  # whether the factorization failed decides what is computed
    paper = "Liu et al., AISTATS 2021, arXiv 2103.01649"
    published_weight = 0.01
    published_output_weight = 0.1
    published_output_options: ClassVar[dict[str, Any]] = {"half_space": False}

    def __init__(
        self, num_neurons: int, dim: int, *, variant: str = "paper", half_space: bool = True
    ) -> None:
        super().__init__(num_neurons, dim, variant=variant)
        self.half_space = half_space

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        wide = x.to(wide_dtype(x.device))
        u = directions(wide) if self.variant == "paper" else released_rows(wide)
        cosines = u @ u.mT
        if self.variant == "paper":  # of a row of zeros, too
            own = torch.eye(len(u), dtype=torch.bool, device=u.device)
            cosines = cosines.masked_fill(own, 1.0)
        if self.half_space:  # A ± B for A = exp(2c − 2), B = exp(−2c − 2)
            scale = 2 * torch.exp(cosines.new_tensor(-2.0))
            kernels = torch.stack([(2 * cosines).cosh(), (2 * cosines).sinh()]) * scale
        else:
            kernels = (2 * cosines - 2).exp().unsqueeze(0)
        return -log_determinants(kernels).sum().to(x.dtype)

    def options(self) -> dict[str, Any]:
        """The hyperparameters."""
        return {**super().options(), "half_space": self.half_space}


def log_determinants(kernels: Tensor) -> Tensor:
    """Finite log det(K + JITTER · I) of symmetric positive semi-definite ``[..., n, n]``."""
    regular = kernels + JITTER * torch.eye(kernels.shape[-1]).to(kernels)
    factor, failed = torch.linalg.cholesky_ex(regular)
    if not regular.isfinite().all():  # of which LAPACK finds no eigenvalues
        return regular.sum((-2, -1)) * torch.nan
    if not failed.any():
        return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    with torch.no_grad():
        eigenvalues, vectors = torch.linalg.eigh(regular)
        eigenvalues.clamp_min_(JITTER)
        inverse = (vectors / eigenvalues.unsqueeze(-2)) @ vectors.mT
        values = eigenvalues.log().sum(-1)
    # The inverse is the gradient; that of eigh itself is infinite where eigenvalues are equal.
    first_order = (regular * inverse).sum((-2, -1))
    return values + first_order - first_order.detach()
