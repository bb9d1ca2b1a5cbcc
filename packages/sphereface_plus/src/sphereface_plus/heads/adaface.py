"""AdaFace (Kim et al., CVPR 2022, arXiv 2204.00964): a margin by the feature's length.

Length stands for the image's quality. With n = ‖x‖ in [0.001, 100], outside the graph, and
q = h (n − μ) / (σ + 0.001) in [−1, 1], where μ and σ are running figures of n, the label's logit is

    s · (cos(θ − m q) − m (1 + q)),    θ − m q in [0.001, π − 0.001].

As published (mk-minchul/AdaFace, commit c60eaa78): cosines in ±(1 − 0.001), beyond which there is
no gradient; μ and σ take in the batch before they are used. In evaluation mode they stay as they
are, where the program goes on.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from sphereface_plus.heads.base import Head, at_labels, check_range, cross_entropy, with_labels

__all__ = ["AdaFace"]

EDGE = 1e-3


class AdaFace(Head):
    """AdaFace; formulas at the head of this file.

    Args:
        dim: d, the dimension of the features.
        num_classes: C, the number of classes.
        m: the margin.
        h: how much lengths matter; 0: a CosFace.
        scale: s.
        t_alpha: a batch's share in the running figures; the published runs have 0.01.

    Attributes:
        batch_mean: μ, a buffer, of the features of all processes; starts at 20.
        batch_std: σ, likewise; starts at 100.

    Raises:
        ValueError: for an option out of range.

    Example:
        >>> head = AdaFace(dim=8, num_classes=5)
        >>> head(torch.randn(3, 8), torch.tensor([0, 1, 4])).shape
        torch.Size([])
    """

    batch_mean: Tensor
    batch_std: Tensor

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        m: float = 0.4,
        h: float = 0.333,
        scale: float = 64.0,
        t_alpha: float = 0.01,
    ) -> None:
        super().__init__(dim, num_classes)
        check_range(
            "adaface",
            m=(m, 0, math.pi / 2),
            h=(h, 0, 100),
            scale=(scale, 1e-6, 1e6),
            t_alpha=(t_alpha, 0, 1),
        )
        self.m, self.h, self.scale, self.t_alpha = m, h, scale, t_alpha
        self.register_buffer("batch_mean", torch.full((1,), 20.0))
        self.register_buffer("batch_std", torch.full((1,), 100.0))

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy."""
        return cross_entropy(self.logits(features, labels), labels)

    def logits(self, features: Tensor, labels: Tensor) -> Tensor:
        """Logits ``[B, C]``; in training mode the running figures take in the batch first."""
        logits = self.scaled_cosines(features, self.scale, 1 - EDGE)
        lengths = torch.linalg.vector_norm(features.detach(), dim=-1, keepdim=True)
        lengths = lengths.clamp(0.001, 100)
        if self.training:
            self.take_in(lengths)
        quality = self.h * (lengths - self.batch_mean) / (self.batch_std + EDGE)
        quality = quality.clamp(-1, 1)
        # Scaled and back, the largest cosine may be rounded beyond itself.
        own = (at_labels(logits, labels) / self.scale).clamp(-1 + EDGE, 1 - EDGE)
        theta = own.acos() - self.m * quality
        hard = theta.clamp(EDGE, math.pi - EDGE).cos() - self.m * (1 + quality)
        return with_labels(logits, labels, self.scale * hard)

    @torch.no_grad()
    def take_in(self, lengths: Tensor) -> None:
        """The lengths of all processes' features, as a part of the running figures.

        One feature alone has no standard deviation, and leaves the running one as it is.
        """
        if dist.is_available() and dist.is_initialized():
            everyones = [torch.empty_like(lengths) for _ in range(dist.get_world_size())]
            dist.all_gather(everyones, lengths)
            lengths = torch.cat(everyones)
        self.batch_mean.lerp_(lengths.mean().to(self.batch_mean.dtype), self.t_alpha)
        if len(lengths) > 1:
            self.batch_std.lerp_(lengths.std().to(self.batch_std.dtype), self.t_alpha)
