"""The networks: DCGAN's generator with SNDCGAN's discriminator, and SN-GAN's ResNet pair.

Both pairs are those of Miyato et al., *Spectral Normalization for Generative Adversarial Networks*
(ICLR 2018), tables 3 and 4, with the details of the published MHE-GAN programs: linear layers
have no bias, batch norm follows the first linear layer before it is reshaped, weights are drawn
from a truncated normal distribution. Images have the range [−1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from mhe_core.errors import UserError
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.nn.utils.parametrizations import spectral_norm

__all__ = [
    "IMAGE_SIZES",
    "NETWORKS",
    "NOISE_DIM",
    "DCGANGenerator",
    "NetworkPair",
    "ResNetDiscriminator",
    "ResNetGenerator",
    "SNDCGANDiscriminator",
    "create_networks",
]

NOISE_DIM = 128
IMAGE_SIZES = (32, 48, 64)


def scaled(channels: int, width: float) -> int:
    """A number of channels times the width factor, at least one."""
    return max(1, round(channels * width))


class DCGANGenerator(nn.Module):
    """Noise [B, 128] to images [B, 3, size, size] in [−1, 1].

    A linear layer to (size / 8)² positions, three transposed convolutions that double the size,
    and one to the three colours, each but the last with batch norm and ReLU.

    Args:
        width: factor on the published 512, 256, 128, 64 channels.
        image_size: 32, 48 or 64.

    Example:
        >>> DCGANGenerator(width=0.25, image_size=48)(torch.randn(2, 128)).shape
        torch.Size([2, 3, 48, 48])
    """

    def __init__(self, width: float = 1.0, image_size: int = 32) -> None:
        super().__init__()
        start = image_size // 8
        first, *channels = (scaled(c, width) for c in (512, 256, 128, 64))
        self.project = nn.Sequential(
            nn.Linear(NOISE_DIM, first * start * start, bias=False),
            nn.BatchNorm1d(first * start * start, eps=2e-5, momentum=0.1),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, (first, start, start)),
        )
        layers: list[nn.Module] = []
        previous = first
        for c in channels:
            layers += [
                nn.ConvTranspose2d(previous, c, 4, stride=2, padding=1),
                nn.BatchNorm2d(c, eps=2e-5, momentum=0.1),
                nn.ReLU(inplace=True),
            ]
            previous = c
        layers += [nn.ConvTranspose2d(previous, 3, 3, padding=1), nn.Tanh()]
        self.upsample = nn.Sequential(*layers)
        initialize_truncated_normal(self, width)

    def forward(self, noise: Tensor) -> Tensor:
        """Images in [−1, 1] for the noise [B, 128]."""
        return self.upsample(self.project(noise))


class SNDCGANDiscriminator(nn.Module):
    """Images [B, 3, size, size] in [−1, 1] to logits [B]: the higher, the more they look real.

    Seven convolutions with leaky ReLU 0.1, three of which halve the size, and a linear layer.
    Without batch norm: a batch's images do not see each other.

    Args:
        width: factor on the published 64 to 512 channels.
        image_size: 32, 48 or 64.

    Example:
        >>> SNDCGANDiscriminator(width=0.25)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2])
    """

    def __init__(self, width: float = 1.0, image_size: int = 32) -> None:
        super().__init__()
        channels = [scaled(c, width) for c in (64, 128, 128, 256, 256, 512, 512)]
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(zip([3, *channels], channels, strict=False)):
            if i % 2 == 0:
                layers.append(nn.Conv2d(c_in, c_out, 3, padding=1))
            else:
                layers.append(nn.Conv2d(c_in, c_out, 4, stride=2, padding=1))
            layers.append(nn.LeakyReLU(0.1, inplace=True))
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.output = nn.Linear(channels[-1] * (image_size // 8) ** 2, 1, bias=False)
        initialize_truncated_normal(self, width)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B] for the images."""
        return self.output(self.features(images)).squeeze(1)


def initialize_truncated_normal(network: nn.Module, width: float) -> None:
    """Weights N(0, 0.02²) cut at two standard deviations, biases zero, as published for width 1.

    With another width, the layers that have more or fewer inputs for it, all but the first, take
    0.02 / √width: signals keep the size that they have at full width. (With 0.02 a narrow
    discriminator without spectral norm sees next to nothing of its images.)
    """
    std = 0.02
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            std = 0.02 / width**0.5


class ResNetGenerator(nn.Module):
    """Noise [B, 128] to images [B, 3, size, size] in [−1, 1] by three residual blocks.

    Args:
        width: factor on the published 256 channels.
        image_size: 32, 48 or 64.

    Example:
        >>> ResNetGenerator(width=0.125, image_size=64)(torch.randn(2, 128)).shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(self, width: float = 1.0, image_size: int = 32) -> None:
        super().__init__()
        start = image_size // 8
        c = scaled(256, width)
        self.project = nn.Sequential(
            nn.Linear(NOISE_DIM, c * start * start), nn.Unflatten(1, (c, start, start))
        )
        self.blocks = nn.Sequential(*(GeneratorBlock(c) for _ in range(3)))
        self.to_image = nn.Sequential(
            nn.BatchNorm2d(c, eps=2e-5),
            nn.ReLU(inplace=True),
            nn.Conv2d(c, 3, 3, padding=1),
            nn.Tanh(),
        )
        initialize_glorot(self)

    def forward(self, noise: Tensor) -> Tensor:
        """Images in [−1, 1] for the noise [B, 128]."""
        return self.to_image(self.blocks(self.project(noise)))


class GeneratorBlock(nn.Module):
    """Pre-activation residual block with batch norm that doubles the size."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(c, eps=2e-5),
            nn.ReLU(inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(c, c, 3, padding=1),
            nn.BatchNorm2d(c, eps=2e-5),
            nn.ReLU(inplace=True),
            nn.Conv2d(c, c, 3, padding=1),
        )
        self.shortcut = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(c, c, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, c, H, W] to [B, c, 2H, 2W]."""
        return self.residual(x) + self.shortcut(x)


class ResNetDiscriminator(nn.Module):
    """Images [B, 3, size, size] in [−1, 1] to logits [B] by four residual blocks.

    The first two blocks halve the size; the last features are summed over all positions.

    Args:
        width: factor on the published 128 channels.
        image_size: any size that 4 divides; the published one is 32.

    Example:
        >>> ResNetDiscriminator(width=0.25)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2])
    """

    def __init__(self, width: float = 1.0, image_size: int = 32) -> None:
        super().__init__()
        c = scaled(128, width)
        self.blocks = nn.Sequential(
            DiscriminatorBlock(3, c, downsample=True, first=True),
            DiscriminatorBlock(c, c, downsample=True),
            DiscriminatorBlock(c, c),
            DiscriminatorBlock(c, c),
        )
        self.output = nn.Linear(c, 1)
        initialize_glorot(self)

    def features(self, images: Tensor) -> Tensor:
        """What the output layer is given of the images, [B, c]."""
        return relu(self.blocks(images)).sum(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B] for the images."""
        return self.output(self.features(images)).squeeze(1)


class DiscriminatorBlock(nn.Module):
    """Pre-activation residual block without norm; the first one does not rectify the image."""

    def __init__(
        self, c_in: int, c_out: int, downsample: bool = False, first: bool = False
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Identity() if first else nn.ReLU(),
            nn.Conv2d(c_in, c_out, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, 3, padding=1),
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
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight, gain=2**0.5 if ".residual." in name else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@dataclass(frozen=True)
class NetworkPair:
    """A generator and the discriminator that goes with it."""

    generator: Callable[[float, int], nn.Module]
    discriminator: Callable[[float, int], nn.Module]


NETWORKS = {
    "dcgan": NetworkPair(DCGANGenerator, SNDCGANDiscriminator),
    "resnet": NetworkPair(ResNetGenerator, ResNetDiscriminator),
}


def create_networks(
    name: str = "dcgan", *, width: float = 1.0, image_size: int = 32, spectral_normed: bool = True
) -> tuple[nn.Module, nn.Module]:
    """A generator and a discriminator by name.

    Args:
        name: ``"dcgan"`` or ``"resnet"``.
        width: factor on the published numbers of channels, positive.
        image_size: 32, 48 or 64.
        spectral_normed: divide every weight of the discriminator by its largest singular value,
            estimated by one power iteration at each forward pass in training mode.

    Returns:
        The generator (noise [B, 128] to images in [−1, 1]) and the discriminator (images to
        logits [B]).

    Raises:
        ValueError: if the name is unknown, or a size is out of range.

    Example:
        >>> generator, discriminator = create_networks("dcgan", width=0.25)
        >>> discriminator(generator(torch.randn(4, 128))).shape
        torch.Size([4])
    """
    if name not in NETWORKS:
        raise UserError(f"expected the model to be one of {sorted(NETWORKS)}, got {name!r}")
    if image_size not in IMAGE_SIZES:
        raise UserError(f"expected an image size of {IMAGE_SIZES}, got {image_size}")
    if width <= 0:
        raise UserError(f"expected a positive width, got {width}")
    pair = NETWORKS[name]
    generator = pair.generator(width, image_size)
    discriminator = pair.discriminator(width, image_size)
    if spectral_normed:
        for module in discriminator.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                spectral_norm(module)
    return generator, discriminator


def singular_values(network: nn.Module) -> dict[str, Tensor]:
    """The largest singular value of each layer's weight as the forward pass uses it.

    Reads a spectral-normed weight in evaluation mode, so that no power iteration happens.

    Returns:
        One scalar a layer, by module name; the weight of a convolution counts as the matrix
        ``[c_out, c_in · k · k]``, as for spectral norm.
    """
    values = {}
    was_training = network.training
    network.eval()
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                values[name] = torch.linalg.matrix_norm(module.weight.flatten(1), ord=2)
    network.train(was_training)
    return values
