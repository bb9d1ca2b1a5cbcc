r"""How far the neurons are from orthonormal, at worst: SRIP, a spectral norm."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from mhe_uniformity._base import check_choice
from mhe_uniformity._state import Seeded
from mhe_uniformity.orthonormality import SIDES, gram_deviation, side_rows

__all__ = ["SRIP"]

FLOOR = 1e-12  # of the lengths that the power iteration divides by


class SRIP(Seeded):
    r"""Spectral restricted isometry property: the spectral norm of the Gram matrix's deviation.

    .. math:: \sigma(W^\top W - I)

    Bansal, Chen and Wang, *Can We Gain More from Orthogonality Regularizations in Training Deep
    CNNs?*, NeurIPS 2018, arXiv 1810.09102. Published weight: 0.01 (CIFAR), lowered in steps to 0
    at epoch 120; 1e-6 on ImageNet.

    The programs take one and a half steps of a power iteration from a random vector z, and so stay
    below the norm: :math:`v = Az / \lVert Az \rVert`, loss :math:`\lVert Av \rVert` or its
    square, with a gradient through v. z is the buffer ``start``, drawn anew in each update.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"`` and ``"exact"``: the norm itself, by eigenvalues of the smaller Gram
            matrix; ``"imagenet"``: squared, of Wᵀ·W, z normal; ``"wideresnet"``: squared,
            of the smaller Gram matrix, z uniform in [0, 1]; ``"keras"``: not squared, of the
            neurons' Gram matrix, z uniform and drawn once.
        side: for ``"paper"`` and ``"exact"``, which Gram matrix: of the ``"neurons"``, W·Wᵀ; of
            the ``"dims"``, Wᵀ·W; or the ``"smaller"`` one, the only one that can become the
            identity (the larger one's norm is at least 1). Default: ``"smaller"`` for
            ``"paper"``, ``"dims"`` for ``"exact"``.
        seed: what the start vectors are drawn from, see :class:`mhe_uniformity.Seeded`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> create_regularizer("srip", 3, 3)(2 * torch.eye(3))
        tensor(3.)
    """

    paper = "Bansal et al., NeurIPS 2018, arXiv 1810.09102"
    published_weight = 0.01
    published_output_weight = 0.01
    variants = ("paper", "exact", "imagenet", "wideresnet", "keras")
    directional = ()
    sides: ClassVar[dict[str, str]] = {
        "paper": "smaller",
        "exact": "dims",
        "imagenet": "dims",
        "wideresnet": "smaller",
        "keras": "neurons",
    }

    start: Tensor | None

    def __init__(
        self,
        num_neurons: int,
        dim: int,
        *,
        variant: str = "paper",
        side: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(num_neurons, dim, variant=variant, seed=seed)
        self.exact = variant in ("paper", "exact")
        if side is not None and not self.exact:
            raise ValueError(f"expected no side with variant {variant!r}, got {side!r}")
        self.side = self.sides[variant] if side is None else side
        check_choice("side", self.side, SIDES)
        sizes = {"neurons": num_neurons, "dims": dim, "smaller": min(num_neurons, dim)}
        self.register_buffer("start", None if self.exact else torch.empty(sizes[self.side]))
        self.reset_parameters()

    @property
    def compiles(self) -> bool:  # type: ignore[override]
        """LAPACK's eigenvalues are asked for only where there can be any."""
        return not self.exact

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        vectors = side_rows(x, self.side)
        if self.start is None:
            deviation = gram_deviation(x)
            if not deviation.isfinite().all():  # of which LAPACK finds no eigenvalues
                return deviation.sum() * torch.nan
            norm = torch.linalg.eigvalsh(deviation).abs().amax()
            # The larger Gram matrix has zeros beside the smaller one's eigenvalues.
            return norm.clamp_min(1.0) if len(vectors) > vectors.shape[1] else norm
        first = deviated(vectors, self.start.to(x.dtype))
        second = deviated(vectors, first / torch.linalg.vector_norm(first).clamp_min(FLOOR))
        if self.variant == "keras":
            return torch.linalg.vector_norm(second)
        return second.square().sum()

    def update(self, neurons: Tensor, lr: float) -> None:
        """Draw a new start vector; once per training step."""
        super().update(neurons, lr)
        if self.variant != "keras":
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the start vector of this number of updates; keras's is drawn once."""
        if self.start is None:
            return
        drawn = torch.empty(self.start.shape, dtype=torch.float32, device="cpu")
        if self.variant == "imagenet":
            drawn.normal_(generator=self.generator())
        else:
            drawn.uniform_(generator=self.generator())
        self.start.copy_(drawn)

    def options(self) -> dict[str, Any]:
        """The hyperparameters."""
        return {**super().options(), "side": self.side, "seed": self.seed}


def deviated(vectors: Tensor, z: Tensor) -> Tensor:
    """(V·Vᵀ − I) z for V ``[n, m]``, without the n × n matrix."""
    return vectors @ (vectors.mT @ z) - z
