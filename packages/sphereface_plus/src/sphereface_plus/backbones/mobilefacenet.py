"""insightface's MobileFaceNets, with its names of weights.

Depth-wise separable convolutions (MobileFaceNet, Chen et al., CCBR 2018, arXiv 1804.07573), here
``scale`` times as wide. Layout and initial weights: arcface_torch (commit 7fadd420).
"""

from __future__ import annotations

from mhe_core.autocast import without_autocast
from torch import Tensor, nn

__all__ = ["MOBILEFACENETS", "MobileFaceNet"]

# Blocks of the four stages, and the factor on the number of channels.
MOBILEFACENETS = {
    "mobilefacenet": ((1, 4, 6, 2), 2),
    "mobilefacenet_large": ((2, 8, 12, 4), 4),
}


class MobileFaceNet(nn.Module):
    """A MobileFaceNet.

    Args:
        blocks: of the four stages.
        scale: the factor on the number of channels.
        dim: dimension of the embedding.
        image_size: height and width of the images; published weights are for 112×112.

    Example:
        >>> import torch
        >>> network = MobileFaceNet((1, 1, 1, 1), 1, dim=32, image_size=(32, 32)).eval()
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int] = (1, 4, 6, 2),
        scale: int = 2,
        dim: int = 512,
        image_size: tuple[int, int] = (112, 112),
    ) -> None:
        super().__init__()
        narrow, wide = 64 * scale, 128 * scale
        first = convolution(narrow, narrow, 3, groups=64)
        self.layers = nn.Sequential(
            convolution(3, narrow, 3, stride=2),
            first if blocks[0] == 1 else Residual(narrow, blocks[0], 128),
            DepthWise(narrow, narrow, 128, stride=2),
            Residual(narrow, blocks[1], 128),
            DepthWise(narrow, wide, 256, stride=2),
            Residual(wide, blocks[2], 256),
            DepthWise(wide, wide, 512, stride=2),
            Residual(wide, blocks[3], 256),
        )
        self.conv_sep = convolution(wide, 512, 1)
        height, width = (-(-side // 16) for side in image_size)  # halved four times, rounded up
        self.features = Layers(
            convolution(512, 512, (height, width), groups=512, padding=0, activation=False),
            nn.Flatten(),
            nn.Linear(512, dim, bias=False),
            nn.BatchNorm1d(dim),
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [B, dim] of images [B, 3, height, width]; the last layers in float32."""
        x = self.layers(images)
        with without_autocast(x.device):
            x = x.to(next(self.conv_sep.parameters()).dtype)
            return self.features(self.conv_sep(x))


class Layers(nn.Module):
    """A sequence, whose name is part of the weights' names."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """What the last layer gives."""
        return self.layers(x)


class DepthWise(Layers):
    """A 1×1 convolution to ``inner`` channels, a depth-wise 3×3 one, and a 1×1 one back."""

    def __init__(self, before: int, after: int, inner: int, stride: int = 1) -> None:
        super().__init__(
            convolution(before, inner, 1),
            convolution(inner, inner, 3, stride, groups=inner),
            convolution(inner, after, 1, activation=False),
        )


class Residual(Layers):
    """Depth-wise blocks, each added to its input."""

    def __init__(self, channels: int, blocks: int, inner: int) -> None:
        super().__init__(*(DepthWise(channels, channels, inner) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, channels, h, w] of such features."""
        for block in self.layers:
            x = x + block(x)
        return x


def convolution(
    before: int,
    after: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    groups: int = 1,
    padding: int | None = None,
    activation: bool = True,
) -> Layers:
    """Convolution, batch norm and, if wanted, PReLU; 3×3 ones are padded by 1."""
    if padding is None:
        padding = 1 if kernel == 3 else 0
    conv = nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False)
    ends = [nn.PReLU(after)] if activation else []
    return Layers(conv, nn.BatchNorm2d(after), *ends)
