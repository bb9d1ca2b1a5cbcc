"""The margins of insightface's arcface_torch together: ArcFace, CosFace, and filtering.

As the program has them (CombinedMarginLoss, commit 7fadd420): with ``m3`` above 0 the label's logit
is s·(cos θ − m3), else s·cos(θ + m2). The second is outside the graph, so that it has the gradient
of cos θ, and goes up again where θ + m2 passes π. A class other than the label whose cos θ is above
``filter`` gets the logit 0 and no gradient (An et al., CVPR 2022, arXiv 2203.15565). The loss of an
image is at most −ln 1e-30 = 69.08; its gradient has no such bound.
"""

from __future__ import annotations

import math
import warnings

import torch
from mhe_core.errors import UserError
from torch import Tensor
from torch.nn import functional

from sphereface_plus.heads.base import Head, at_labels, check_range, detached, with_labels

__all__ = ["CombinedMargin", "combined_logits"]

GREATEST_LOSS = -math.log(1e-30)


class CombinedMargin(Head):
    """insightface's margins; formulas at the head of this file.

    Args:
        dim: d, the dimension of the features.
        num_classes: C, the number of classes.
        m1: a factor on θ; the program has 1 only, where ``m3`` is 0.
        m2: ArcFace's margin.
        m3: CosFace's margin; published: m2 = 0, m3 = 0.4 for WebFace.
        scale: s.
        filter: the cosine above which another class is left out; 0: none is.

    Raises:
        ValueError: if m1 is not 1 with m3 = 0, which the program refuses, too, or an option is out
            of range.

    Example:
        >>> head = CombinedMargin(dim=8, num_classes=5, filter=0.4)
        >>> head(torch.randn(3, 8), torch.tensor([0, 1, 4])).shape
        torch.Size([])
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        m1: float = 1.0,
        m2: float = 0.5,
        m3: float = 0.0,
        scale: float = 64.0,
        filter: float = 0.0,
    ) -> None:
        super().__init__(dim, num_classes)
        check_range(
            "combined",
            m1=(m1, 0, 100),
            m2=(m2, 0, math.pi),
            m3=(m3, 0, 2),
            scale=(scale, 1e-6, 1e6),
            filter=(filter, 0, 1),
        )
        if m3 == 0 and m1 != 1:
            raise UserError(f"expected m1 = 1 where m3 is 0, got m1 = {m1}")
        if m3 > 0 and (m1 != 1 or m2 != 0):
            warnings.warn(
                f"combined: with m3 = {m3}, m1 = {m1} and m2 = {m2} have no effect, as published",
                stacklevel=2,
            )
        self.m1, self.m2, self.m3 = m1, m2, m3
        self.scale, self.filter = scale, filter

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy, each image's at most 69.08."""
        logits = self.scaled_cosines(features, self.scale)
        logits = combined_logits(logits, labels, self.m2, self.m3, self.filter, self.scale)
        losses = functional.cross_entropy(logits, labels, reduction="none")
        return detached(losses, losses.clamp_max(GREATEST_LOSS)).mean()


def combined_logits(
    logits: Tensor, labels: Tensor, m2: float, m3: float, filter: float, scale: float
) -> Tensor:
    """The logits with margin, ``[B, C]``, of s·cos θ; label −1 is a class not among these."""
    columns = labels.clamp_min(0)
    own = at_labels(logits, columns)
    cosines = own / scale
    if m3 > 0:
        hard = cosines - m3
    else:
        hard = detached(cosines, (cosines.detach().clamp(-1, 1).acos() + m2).cos())
    if filter > 0:
        logits = logits.masked_fill(logits > scale * filter, 0.0)
        own = at_labels(logits, columns)
    elsewhere = labels.unsqueeze(1) < 0
    return with_labels(logits, columns, torch.where(elsewhere, own, scale * hard))
