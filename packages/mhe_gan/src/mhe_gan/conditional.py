"""Networks that know classes: conditional batch norm in generators, projection in discriminators.

Miyato and Koyama, *cGANs with Projection Discriminator* (ICLR 2018, arXiv:1802.05637). Without
classes, each module here is the plain one, with the same parameters by the same names.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

__all__ = ["ClassBatchNorm2d", "ClassSequential", "Discriminator", "batch_norm", "check_classes"]


class ClassBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with a scale and a shift for each class; the statistics are of all images.

    Args:
        channels: c of the maps [B, c, h, w].
        num_classes: C.
        eps: added to the variance.
        momentum: of the running statistics.

    Example:
        >>> norm = ClassBatchNorm2d(3, num_classes=10)
        >>> norm(torch.randn(2, 3, 4, 4), torch.tensor([0, 7])).shape
        torch.Size([2, 3, 4, 4])
    """

    takes_classes = True

    def __init__(
        self, channels: int, num_classes: int, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__(channels, eps=eps, momentum=momentum, affine=False)
        self.scale = nn.Parameter(torch.ones(num_classes, channels))
        self.shift = nn.Parameter(torch.zeros(num_classes, channels))

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:  # type: ignore[override]
        """Maps [B, c, h, w], normed, for the classes [B], int64."""
        scale, shift = (
            embedding(classes, table)[:, :, None, None] for table in (self.scale, self.shift)
        )
        return super().forward(x) * scale + shift


def batch_norm(
    channels: int, num_classes: int = 0, *, eps: float, momentum: float = 0.1
) -> nn.Module:
    """Batch norm of maps [B, c, h, w]; with classes, conditional on them."""
    if num_classes:
        return ClassBatchNorm2d(channels, num_classes, eps=eps, momentum=momentum)
    return nn.BatchNorm2d(channels, eps=eps, momentum=momentum)


class ClassSequential(nn.Sequential):
    """Modules in a row; those that have the attribute ``takes_classes`` are given the classes."""

    takes_classes = True

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        """What the last module makes of x; the classes [B] are None without conditioning."""
        for module in self:
            given = classes is not None and getattr(module, "takes_classes", False)
            x = module(x, classes) if given else module(x)
        return x


class Discriminator(nn.Module):
    r"""Features and a linear output layer; with classes, a projection of the features, too.

    .. math:: D(x, y) = w^\top \phi(x) + v_y^\top \phi(x) + b

    with a vector :math:`v_y` for each class y (arXiv:1802.05637, eq. 6, with a linear ψ).

    Subclasses set ``features``, images to φ [B, d], then ``output``, w and b, then ``projection``,
    the vectors v [C, d], or None for a network without classes.
    """

    features: Callable[[Tensor], Tensor]
    output: nn.Linear
    projection: nn.Embedding | None

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """Logits [B] for the images and, of a conditional network, their classes [B], int64."""
        check_classes(classes, conditional=self.projection is not None)
        features = self.features(images)
        logits = self.output(features).squeeze(1)
        if self.projection is None:
            return logits
        return logits + (self.projection(classes) * features).sum(1)


def check_classes(classes: Tensor | None, conditional: bool) -> None:
    """Raise a ValueError unless a conditional network is given classes, and no other one is."""
    if conditional and classes is None:
        raise ValueError("expected the classes [B] of a conditional network's images, got none")
    if classes is not None and not conditional:
        raise ValueError("expected no classes, as the network is not conditional, got some")
