"""CurricularFace (Huang et al., CVPR 2020, arXiv 2004.00288): hard classes count more, later.

The label's logit is s·cos(θ + m), and s·(cos θ − m sin m) where θ + m passes π. Another class whose
cos θ_j is above cos(θ + m) is hard, and gets s·cos θ_j (v + cos θ_j), where v is a running mean of
the labels' cos θ. As published (HuangYG123/CurricularFace, commit 68c8727f): the margin is inside
the graph; v takes in 0.01 of the batch before it is used. In evaluation mode it stays as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sphereface_plus.heads.base import (
    Head,
    add_margin,
    add_margin_or_line,
    at_labels,
    check_range,
    cross_entropy,
    mean_over_processes,
    with_labels,
)

__all__ = ["CurricularFace"]

SHARE = 0.01  # a batch's part in the running mean


class CurricularFace(Head):
    """CurricularFace; formulas at the head of this file.

    Args:
        dim: d, the dimension of the features.
        num_classes: C, the number of classes.
        m: the margin.
        scale: s.

    Attributes:
        t: v, a buffer, the running mean over the images of all processes; starts at 0.

    Raises:
        ValueError: for an option out of range.

    Example:
        >>> head = CurricularFace(dim=8, num_classes=5)
        >>> head(torch.randn(3, 8), torch.tensor([0, 1, 4])).shape
        torch.Size([])
    """

    t: Tensor

    def __init__(self, dim: int, num_classes: int, *, m: float = 0.5, scale: float = 64.0) -> None:
        super().__init__(dim, num_classes)
        check_range("curricularface", m=(m, 0, math.pi / 2), scale=(scale, 1e-6, 1e6))
        self.m, self.scale = m, scale
        self.register_buffer("t", torch.zeros(1))

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy."""
        return cross_entropy(self.logits(features, labels), labels)

    def logits(self, features: Tensor, labels: Tensor) -> Tensor:
        """Logits ``[B, C]``; in training mode the running mean takes in the batch first."""
        logits = self.scaled_cosines(features, self.scale)
        own = at_labels(logits, labels) / self.scale
        if self.training:
            with torch.no_grad():
                self.t.lerp_(mean_over_processes(own.mean()).to(self.t.dtype), SHARE)
        hard = logits > self.scale * add_margin(own, self.m).detach()
        # A copy: the next batch changes the buffer, perhaps before this one's gradient is taken.
        t = self.t.to(logits.dtype, copy=True)
        modulated = logits * torch.add(t, logits, alpha=1 / self.scale)
        weighted = torch.where(hard, modulated, logits)
        return with_labels(weighted, labels, self.scale * add_margin_or_line(own, self.m))
