"""SphereFace's networks (SFNet; Liu et al., CVPR 2017, table 2).

Four stages, each a stride-2 convolution and residual blocks of two convolutions, and a linear layer
to the embedding.
"""

from __future__ import annotations

from mhe_core.errors import UserError
from torch import Tensor, nn

__all__ = ["SFNETS", "SFNet"]

# Residual blocks of the four stages, by the number of convolutions.
BLOCKS = {
    4: (0, 0, 0, 0),
    10: (0, 1, 2, 0),
    20: (1, 2, 4, 1),
    36: (2, 4, 8, 2),
    64: (3, 8, 16, 3),
}
CHANNELS = (64, 128, 256, 512)
SFNETS = {f"sfnet{depth}{end}": (depth, end == "_bn") for depth in BLOCKS for end in ("", "_bn")}


class SFNet(nn.Module):
    """SphereFace's convolutional network.

    Args:
        depth: 4, 10, 20, 36 or 64.
        dim: dimension of the embedding.
        image_size: height and width of the images.
        width: factor on the number of channels.
        batch_norm: a batch norm after each convolution and after the embedding; without, as
            published.

    Raises:
        ValueError: if the depth is none of these.

    Example:
        >>> import torch
        >>> SFNet(4, dim=32, image_size=(112, 96), width=0.25)(torch.zeros(2, 3, 112, 96)).shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        depth: int,
        dim: int = 512,
        image_size: tuple[int, int] = (112, 96),
        width: float = 1.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise UserError(f"expected depth to be one of {tuple(BLOCKS)}, got {depth}")
        layers: list[nn.Module] = []
        before = 3
        for published, blocks in zip(CHANNELS, BLOCKS[depth], strict=True):
            channels = max(1, round(published * width))
            layers.append(convolution(before, channels, 2, batch_norm))
            layers += [Residual(channels, batch_norm) for _ in range(blocks)]
            before = channels
        self.stages = nn.Sequential(*layers)
        height, breadth = (-(-side // 16) for side in image_size)  # halved four times, rounded up
        self.embedding = nn.Linear(before * height * breadth, dim)
        initialize(self.embedding, residual=False)
        self.norm = nn.BatchNorm1d(dim) if batch_norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [B, dim] of images [B, 3, height, width] in [−1, 1)."""
        return self.norm(self.embedding(self.stages(images).flatten(1)))


class Residual(nn.Module):
    """Two convolutions, added to their input."""

    def __init__(self, channels: int, batch_norm: bool) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            convolution(channels, channels, 1, batch_norm, residual=True),
            convolution(channels, channels, 1, batch_norm, residual=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, channels, h, w] of such features."""
        return x + self.convolutions(x)


def convolution(
    before: int, after: int, stride: int, batch_norm: bool, residual: bool = False
) -> nn.Sequential:
    """3×3 convolution, batch norm if wanted, PReLU; as published, residual ones have no bias."""
    bias = not batch_norm and not residual
    conv = nn.Conv2d(before, after, 3, stride, padding=1, bias=bias)
    if batch_norm:
        nn.init.kaiming_normal_(conv.weight, a=0.25)  # the slope that PReLU starts with
        return nn.Sequential(conv, nn.BatchNorm2d(after), nn.PReLU(after))
    initialize(conv, residual)
    return nn.Sequential(conv, nn.PReLU(after))


def initialize(layer: nn.Conv2d | nn.Linear, residual: bool) -> None:
    """The published initial weights: of variance 1/fan_in, residual ones of deviation 0.01.

    Without batch norm these small residuals keep the scale of their sums at first.
    """
    if residual:
        nn.init.normal_(layer.weight, std=0.01)
    else:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
