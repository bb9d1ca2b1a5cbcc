"""insightface's iresnets, with its names of weights, which are MagFace's and OpenSphere's, too.

A 3×3 convolution, four stages of residual blocks (batch norm, convolution, batch norm, PReLU,
convolution, batch norm, and nothing after the sum), batch norm, and a linear layer with a batch
norm whose weight is frozen at 1. Layout and initial weights: arcface_torch (commit 7fadd420).
"""

from __future__ import annotations

from mhe_core.autocast import without_autocast
from torch import Tensor, nn

__all__ = ["IRESNETS", "IResNet"]

# Residual blocks of the four stages.
IRESNETS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
    "iresnet200": (6, 26, 60, 6),
}


class IResNet(nn.Module):
    """An iresnet.

    Args:
        blocks: residual blocks of the four stages.
        dim: dimension of the embedding.
        image_size: height and width of the images; published weights are for 112×112.

    Example:
        >>> import torch
        >>> network = IResNet((1, 1, 1, 1), dim=32, image_size=(32, 32)).eval()
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        dim: int = 512,
        image_size: tuple[int, int] = (112, 112),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        self.layer1 = stage(64, 64, blocks[0])
        self.layer2 = stage(64, 128, blocks[1])
        self.layer3 = stage(128, 256, blocks[2])
        self.layer4 = stage(256, 512, blocks[3])
        self.bn2 = nn.BatchNorm2d(512)
        height, width = (-(-side // 16) for side in image_size)  # halved four times, rounded up
        self.fc = nn.Linear(512 * height * width, dim)
        self.features = nn.BatchNorm1d(dim)
        self.features.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.1)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [B, dim] of images [B, 3, height, width]; the last layer in float32."""
        x = self.prelu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.bn2(x).flatten(1)
        with without_autocast(x.device):
            return self.features(self.fc(x.to(self.fc.weight.dtype)))


class Block(nn.Module):
    """Two convolutions, the second with the stride, added to their input."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.prelu = nn.PReLU(after)
        self.conv2 = nn.Conv2d(after, after, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, after, h, w] of features [B, before, …]."""
        inner = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(inner)) + self.downsample(x)


def stage(before: int, after: int, blocks: int) -> nn.Sequential:
    """Residual blocks, of which the first has stride 2."""
    first = Block(before, after, stride=2)
    return nn.Sequential(first, *(Block(after, after, stride=1) for _ in range(blocks - 1)))
