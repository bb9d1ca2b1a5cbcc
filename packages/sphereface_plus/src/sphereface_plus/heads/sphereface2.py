r"""SphereFace2 (Wen et al., ICLR 2022, arXiv 2108.01513), as OpenSphere computes it.

C binary classifications in place of one of C classes:

.. math::
    L = \frac{w}{r B} \sum_{i,j} \alpha_{ij} \, \mathrm{BCE}(z_{ij}, [j = y_i]), \quad
    z = r\,g + b, \quad g(c) = 2\left(\frac{c + 1}{2}\right)^t - 1

with α at the label and 1 − α elsewhere. The margin, by type: C, g(cos θ) − m at the label and
+ m elsewhere; A, g(cos(θ + m)) at the label; M, g(cos(mθ)) there. Margin and g are outside the
graph, and so is the replacement of class vectors by their directions.
"""

from __future__ import annotations

import math

import torch
from mhe_core.errors import UserError
from torch import Tensor, nn
from torch.nn import functional

from sphereface_plus.heads.base import at_labels, check_range, detached, with_labels
from sphereface_plus.heads.opensphere import EDGE, PI, RenormalizedHead, angles

__all__ = ["SphereFace2"]

MARGINS = {"C": 0.4, "A": 0.5, "M": 1.7}


class SphereFace2(RenormalizedHead):
    """SphereFace2; formulas at the head of this file.

    Args:
        dim: d, the dimension of the features.
        num_classes: C, the number of classes, at least 2.
        m: the margin; default: 0.4 for type C, 0.5 for A, 1.7 for M.
        scale: r.
        margin_type: ``"C"``, ``"A"`` or ``"M"``.
        alpha: α, the weight of the label's classification, above 0 and below 1.
        t: the power of the similarity.
        loss_weight: w.

    Attributes:
        bias: b, trained; it starts where the loss of angles of 90° is least.

    Raises:
        ValueError: for an option that is none of these or out of range.

    Example:
        >>> head = SphereFace2(dim=8, num_classes=5)
        >>> head(torch.randn(3, 8), torch.tensor([0, 1, 4])).shape
        torch.Size([])
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        m: float | None = None,
        scale: float = 40.0,
        margin_type: str = "C",
        alpha: float = 0.7,
        t: float = 3.0,
        loss_weight: float = 50.0,
    ) -> None:
        super().__init__(dim, num_classes)
        if margin_type not in MARGINS:
            raise UserError(f"expected margin_type of {tuple(MARGINS)}, got {margin_type!r}")
        if num_classes < 2:
            raise UserError(f"expected num_classes at least 2 for sphereface2, got {num_classes}")
        self.m = MARGINS[margin_type] if m is None else m
        self.margin_type, self.alpha, self.t = margin_type, alpha, t
        self.scale, self.loss_weight = scale, loss_weight
        check_range(
            "sphereface2",
            m=(self.m, 0, 100),
            scale=(scale, 1e-6, 1e6),
            alpha=(alpha, 1e-6, 1 - 1e-6),
            t=(t, 1e-6, 1e3),
            loss_weight=(loss_weight, 0, 1e6),
        )
        self.bias = nn.Parameter(torch.full((1,), self.first_bias()))

    def first_bias(self) -> float:
        """What b starts with, by the paper's equation for angles of 90°."""
        own = other = self.similarity(math.pi / 2)
        if self.margin_type == "C":
            own, other = own - self.m, other + self.m
        else:
            moved = math.pi / 2 + self.m if self.margin_type == "A" else self.m * math.pi / 2
            own = self.similarity(min(math.pi, moved))
        own, other = self.scale * own, self.scale * other
        odds = self.alpha / ((1 - self.alpha) * (self.num_classes - 1))
        root = math.sqrt((1 - odds) ** 2 + 4 * odds * math.exp(own - other))
        return math.log(2 * odds) - other - math.log(1 - odds + root)

    def similarity(self, theta: float) -> float:
        """The similarity g at an angle in radians."""
        return 2 * ((math.cos(theta) + 1) / 2) ** self.t - 1

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """The weighted binary cross entropies."""
        cosines = self.scaled_cosines(features, 1.0)
        z = self.scale * detached(cosines, self.with_margin(cosines.detach(), labels)) + self.bias
        positive = functional.one_hot(labels, self.num_classes).to(z.dtype)
        weight = self.alpha * positive + (1 - self.alpha) * (1 - positive)
        losses = functional.binary_cross_entropy_with_logits(z, positive, weight, reduction="sum")
        return losses * self.loss_weight / (self.scale * len(labels))

    def with_margin(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """The similarities of all classes, ``[B, C]``."""
        if self.margin_type == "C":
            g = self.similarities(cosines)
            return with_labels(g + self.m, labels, at_labels(g, labels) - self.m)
        theta = angles(at_labels(cosines, labels))
        moved = theta + self.m if self.margin_type == "A" else self.m * theta
        hard = moved.clamp(EDGE, PI).cos()
        return self.similarities(with_labels(cosines, labels, hard))

    def similarities(self, cosines: Tensor) -> Tensor:
        """The similarities g, which need cosines that rounding has not carried below −1."""
        return 2 * ((cosines + 1) / 2).clamp_min(0.0) ** self.t - 1
