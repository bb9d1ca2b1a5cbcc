"""The ResNet pair of SN-GAN.

Miyato et al., *Spectral Normalization for Generative Adversarial Networks* (ICLR 2018,
arXiv:1802.05957), table 4, and table 5 at 128 pixels; with classes as in Miyato and Koyama (ICLR
2018, arXiv:1802.05637): the batch norms of the generator's blocks are conditional, its last one is
not. Images have the range [−1, 1].
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import relu

from mhe_gan.conditional import ClassSequential, Discriminator, batch_norm, check_classes
from mhe_gan.sizes import NOISE_DIM, scaled

__all__ = ["ResNetDiscriminator", "ResNetGenerator"]


class ResNetGenerator(nn.Module):
    """Noise [B, 128] to images [B, 3, size, size] in [−1, 1] by residual blocks.

    Three blocks that double the size, of 256 channels; at 128 pixels five, from 1024 to 64.

    Args:
        width: factor on the published numbers of channels.
        image_size: 32, 48, 64 or 128.
        channels: of the images, 3 or 1.
        num_classes: of images to choose from; 0 for a network without classes.

    Example:
        >>> import torch
        >>> ResNetGenerator(width=0.125, image_size=64)(torch.randn(2, 128)).shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(
        self, width: float = 1.0, image_size: int = 32, channels: int = 3, num_classes: int = 0
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        published = (1024, 1024, 512, 256, 128, 64) if image_size == 128 else (256,) * 4
        sizes = [scaled(c, width) for c in published]
        start = image_size // 2 ** (len(sizes) - 1)
        self.project = nn.Sequential(
            nn.Linear(NOISE_DIM, sizes[0] * start * start),
            nn.Unflatten(1, (sizes[0], start, start)),
        )
        self.blocks = ClassSequential(
            *(GeneratorBlock(c_in, c_out, num_classes) for c_in, c_out in pairwise(sizes))
        )
        self.to_image = nn.Sequential(
            nn.BatchNorm2d(sizes[-1], eps=2e-5),
            nn.ReLU(inplace=True),
            nn.Conv2d(sizes[-1], channels, 3, padding=1),
            nn.Tanh(),
        )
        initialize_glorot(self)

    def forward(self, noise: Tensor, classes: Tensor | None = None) -> Tensor:
        """Images in [−1, 1] for the noise [B, 128] and, of a conditional one, classes [B]."""
        check_classes(classes, conditional=self.num_classes > 0)
        return self.to_image(self.blocks(self.project(noise), classes))


class GeneratorBlock(nn.Module):
    """Pre-activation residual block with batch norm that doubles the size."""

    takes_classes = True

    def __init__(self, c_in: int, c_out: int, num_classes: int = 0) -> None:
        super().__init__()
        self.residual = ClassSequential(
            batch_norm(c_in, num_classes, eps=2e-5),
            nn.ReLU(inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(c_in, c_out, 3, padding=1),
            batch_norm(c_out, num_classes, eps=2e-5),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, 3, padding=1),
        )
        self.shortcut = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(c_in, c_out, 1))

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        """[B, c_in, H, W] to [B, c_out, 2H, 2W]."""
        return self.residual(x, classes) + self.shortcut(x)


class ResNetDiscriminator(Discriminator):
    """Images [B, 3, size, size] in [−1, 1] to logits [B] by residual blocks.

    Four blocks of 128 channels, of which the first two halve the size; at 128 pixels six, from 64
    to 1024, of which all but the last do. The last features are summed over all positions.

    Args:
        width: factor on the published numbers of channels.
        image_size: 32, 48, 64 or 128.
        channels: of the images, 3 or 1.
        num_classes: of the images; 0 for a network without classes.

    Example:
        >>> import torch
        >>> ResNetDiscriminator(width=0.25)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2])
    """

    def __init__(
        self, width: float = 1.0, image_size: int = 32, channels: int = 3, num_classes: int = 0
    ) -> None:
        super().__init__()
        large = image_size == 128
        published = (64, 128, 256, 512, 1024, 1024) if large else (128,) * 4
        halving = len(published) - 1 if large else 2
        sizes = [channels, *(scaled(c, width) for c in published)]
        self.blocks = nn.Sequential(
            *(
                DiscriminatorBlock(c_in, c_out, downsample=number < halving, first=number == 0)
                for number, (c_in, c_out) in enumerate(pairwise(sizes))
            )
        )
        self.output = nn.Linear(sizes[-1], 1)
        self.projection = nn.Embedding(num_classes, sizes[-1]) if num_classes else None
        initialize_glorot(self)

    def features(self, images: Tensor) -> Tensor:
        """What the output layer is given of the images, [B, c]."""
        return relu(self.blocks(images)).sum(dim=(2, 3))


class DiscriminatorBlock(nn.Module):
    """Pre-activation residual block without norm; the first one does not rectify the image.

    Between its two convolutions there are as many channels as before it, but as many as after it
    in the first block, as in the authors' program.
    """

    def __init__(
        self, c_in: int, c_out: int, downsample: bool = False, first: bool = False
    ) -> None:
        super().__init__()
        c_hidden = c_out if first else c_in
        self.residual = nn.Sequential(
            nn.Identity() if first else nn.ReLU(),
            nn.Conv2d(c_in, c_hidden, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_hidden, c_out, 3, padding=1),
            nn.AvgPool2d(2) if downsample else nn.Identity(),
        )
        changes = downsample or c_in != c_out
        self.shortcut = nn.Sequential(
            nn.Conv2d(c_in, c_out, 1) if changes else nn.Identity(),
            nn.AvgPool2d(2) if downsample else nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, H, W] to [B, c_out, H, W], or half the size."""
        return self.residual(x) + self.shortcut(x)


def initialize_glorot(network: nn.Module) -> None:
    """Glorot uniform weights, those of the residual 3×3 convolutions times √2, biases zero."""
    for name, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            nn.init.xavier_uniform_(module.weight, gain=2**0.5 if ".residual." in name else 1.0)
            if isinstance(bias := getattr(module, "bias", None), Tensor):
                nn.init.zeros_(bias)
