r"""MagFace (Meng et al., CVPR 2021, arXiv 2103.06627): a margin that grows with length.

With a = ‖x‖ in [l_a, u_a] and m(a) linear from l_margin to u_margin, the label's logit is
s·cos(θ + m(a)), and the loss

.. math:: \mathrm{CE} + \lambda_g \, \mathrm{mean}(a / u_a^2 + 1 / a)

As published (IrvingMeng/MagFace, commit 99bae614): the margin is inside the graph; where cos θ ≤ 0
the label has none (``easy_margin``), or without that, cos θ − m sin m where θ + m passes π.
"""

from __future__ import annotations

import math

import torch
from mhe_core.errors import UserError
from torch import Tensor

from sphereface_plus.heads.base import (
    Head,
    add_margin,
    add_margin_or_line,
    at_labels,
    check_range,
    cross_entropy,
    with_labels,
)

__all__ = ["MagFace"]


class MagFace(Head):
    """MagFace; formulas at the head of this file.

    Args:
        dim: d, the dimension of the features.
        num_classes: C, the number of classes.
        l_a: the least length that counts.
        u_a: the greatest.
        l_margin: the margin at ``l_a``.
        u_margin: that at ``u_a``.
        lambda_g: λ_g, the weight of what makes features long; the paper's proof asks for at least
            s k u_a² l_a² / (u_a² − l_a²), k = (u_margin − l_margin) / (u_a − l_a).
        scale: s.
        easy_margin: no margin where cos θ ≤ 0.

    Raises:
        ValueError: for an option out of range, or a range whose ends are the wrong way round.

    Example:
        >>> head = MagFace(dim=8, num_classes=5)
        >>> head(20 * torch.randn(3, 8), torch.tensor([0, 1, 4])).shape
        torch.Size([])
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        l_a: float = 10.0,
        u_a: float = 110.0,
        l_margin: float = 0.45,
        u_margin: float = 0.8,
        lambda_g: float = 35.0,
        scale: float = 64.0,
        easy_margin: bool = True,
    ) -> None:
        super().__init__(dim, num_classes)
        check_range(
            "magface",
            l_a=(l_a, 1e-6, 1e6),
            u_a=(u_a, 1e-6, 1e6),
            l_margin=(l_margin, 0, math.pi / 2),
            u_margin=(u_margin, 0, math.pi / 2),
            lambda_g=(lambda_g, 0, 1e6),
            scale=(scale, 1e-6, 1e6),
        )
        if l_a >= u_a or l_margin > u_margin:
            raise UserError(
                "expected l_a < u_a and l_margin ≤ u_margin, "
                f"got {l_a}, {u_a} and {l_margin}, {u_margin}"
            )
        self.l_a, self.u_a, self.l_margin, self.u_margin = l_a, u_a, l_margin, u_margin
        self.lambda_g, self.scale, self.easy_margin = lambda_g, scale, easy_margin

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy, and what makes features long."""
        lengths = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        lengths = lengths.clamp(self.l_a, self.u_a)
        logits = self.scaled_cosines(features, self.scale)
        hard = self.scale * self.with_margin(at_labels(logits, labels) / self.scale, lengths)
        identity = cross_entropy(with_labels(logits, labels, hard), labels)
        return identity + self.lambda_g * (lengths / self.u_a**2 + 1 / lengths).mean()

    def with_margin(self, cosines: Tensor, lengths: Tensor) -> Tensor:
        """What takes the place of cos θ ``[B, 1]`` at the label, given a."""
        slope = (self.u_margin - self.l_margin) / (self.u_a - self.l_a)
        margin = self.l_margin + slope * (lengths - self.l_a)
        if self.easy_margin:
            return torch.where(cosines > 0, add_margin(cosines, margin), cosines)
        return add_margin_or_line(cosines, margin)
