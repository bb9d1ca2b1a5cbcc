"""DCGAN's generator with SNDCGAN's discriminator.

Miyato et al., *Spectral Normalization for Generative Adversarial Networks* (ICLR 2018,
arXiv:1802.05957), table 3, with the details of the published MHE-GAN programs: linear layers have
no bias, batch norm follows the first linear layer before it is reshaped, weights are drawn from a
truncated normal distribution. Images have the range [−1, 1].

Neither has been published for 128 pixels or for classes: there, each network has one more stage of
twice the channels, and batch norm of maps is conditional (that of the first linear layer is not).
"""

from __future__ import annotations

from torch import Tensor, nn

from mhe_gan.conditional import ClassSequential, Discriminator, batch_norm, check_classes
from mhe_gan.sizes import NOISE_DIM, scaled

__all__ = ["DCGANGenerator", "SNDCGANDiscriminator"]

GENERATOR_CHANNELS = (512, 256, 128, 64)
DISCRIMINATOR_CHANNELS = (64, 128, 128, 256, 256, 512, 512)


class DCGANGenerator(nn.Module):
    """Noise [B, 128] to images [B, 3, size, size] in [−1, 1].

    A linear layer to (size / 8)² positions, three transposed convolutions that double the size,
    and one to the colours, each but the last with batch norm and ReLU. At 128 pixels there are
    four that double the size, from 1024 channels.

    Args:
        width: factor on the published 512, 256, 128, 64 channels.
        image_size: 32, 48, 64 or 128.
        channels: of the images, 3 or 1.
        num_classes: of images to choose from; 0 for a network without classes.

    Example:
        >>> import torch
        >>> DCGANGenerator(width=0.25, image_size=48)(torch.randn(2, 128)).shape
        torch.Size([2, 3, 48, 48])
    """

    def __init__(
        self, width: float = 1.0, image_size: int = 32, channels: int = 3, num_classes: int = 0
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        published = (1024, *GENERATOR_CHANNELS) if image_size == 128 else GENERATOR_CHANNELS
        first, *others = (scaled(c, width) for c in published)
        start = image_size // 2 ** len(others)
        self.project = nn.Sequential(
            nn.Linear(NOISE_DIM, first * start * start, bias=False),
            nn.BatchNorm1d(first * start * start, eps=2e-5, momentum=0.1),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, (first, start, start)),
        )
        layers: list[nn.Module] = []
        previous = first
        for c in others:
            layers += [
                nn.ConvTranspose2d(previous, c, 4, stride=2, padding=1),
                batch_norm(c, num_classes, eps=2e-5, momentum=0.1),
                nn.ReLU(inplace=True),
            ]
            previous = c
        layers += [nn.ConvTranspose2d(previous, channels, 3, padding=1), nn.Tanh()]
        self.upsample = ClassSequential(*layers)
        initialize_truncated_normal(self, width)

    def forward(self, noise: Tensor, classes: Tensor | None = None) -> Tensor:
        """Images in [−1, 1] for the noise [B, 128] and, of a conditional one, classes [B]."""
        check_classes(classes, conditional=self.num_classes > 0)
        return self.upsample(self.project(noise), classes)


class SNDCGANDiscriminator(Discriminator):
    """Images [B, 3, size, size] in [−1, 1] to logits [B]: the higher, the more they look real.

    Seven convolutions with leaky ReLU 0.1, three of which halve the size, and a linear layer.
    Without batch norm: a batch's images do not see each other. At 128 pixels there are nine, and
    four that halve the size.

    Args:
        width: factor on the published 64 to 512 channels.
        image_size: 32, 48, 64 or 128.
        channels: of the images, 3 or 1.
        num_classes: of the images; 0 for a network without classes.

    Example:
        >>> import torch
        >>> SNDCGANDiscriminator(width=0.25)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2])
    """

    def __init__(
        self, width: float = 1.0, image_size: int = 32, channels: int = 3, num_classes: int = 0
    ) -> None:
        super().__init__()
        deeper = (1024, 1024) if image_size == 128 else ()
        sizes = [scaled(c, width) for c in (*DISCRIMINATOR_CHANNELS, *deeper)]
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(zip([channels, *sizes], sizes, strict=False)):
            if i % 2 == 0:
                layers.append(nn.Conv2d(c_in, c_out, 3, padding=1))
            else:
                layers.append(nn.Conv2d(c_in, c_out, 4, stride=2, padding=1))
            layers.append(nn.LeakyReLU(0.1, inplace=True))
        dim = sizes[-1] * (image_size // 2 ** (len(sizes) // 2)) ** 2
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.output = nn.Linear(dim, 1, bias=False)
        self.projection = nn.Embedding(num_classes, dim) if num_classes else None
        initialize_truncated_normal(self, width)


def initialize_truncated_normal(network: nn.Module, width: float) -> None:
    """Weights N(0, 0.02²) cut at two standard deviations, biases zero, as published for width 1.

    With another width, the layers that have more or fewer inputs for it, all but the first, take
    0.02 / √width: signals keep the size that they have at full width. (With 0.02 a narrow
    discriminator without spectral norm sees next to nothing of its images.)
    """
    std = 0.02
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)):
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if isinstance(bias := getattr(module, "bias", None), Tensor):
                nn.init.zeros_(bias)
            std = 0.02 / width**0.5
