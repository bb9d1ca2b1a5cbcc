"""A generator and a discriminator by name.

A third party's pair is found by its entry point in the group ``mhe_gan.networks``, which names a
:class:`NetworkPair`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from mhe_core.errors import UserError
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from mhe_gan.dcgan import DCGANGenerator, SNDCGANDiscriminator
from mhe_gan.plugins import find
from mhe_gan.resnet import ResNetDiscriminator, ResNetGenerator
from mhe_gan.sizes import IMAGE_SIZES, NOISE_DIM

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
    "find_networks",
    "fits_batch",
    "singular_values",
]

GROUP = "mhe_gan.networks"
NORMED = (nn.Linear, nn.Conv2d, nn.Embedding)  # the layers that spectral norm is of


@dataclass(frozen=True)
class NetworkPair:
    """A generator and the discriminator that goes with it.

    Both are made by ``make(width=…, image_size=…, channels=…, num_classes=…)``: a factor on their
    numbers of channels, the images' height and width, 3 colours or 1, and the number of classes,
    0 for networks without.

    Attributes:
        generator: makes a module of noise [B, 128], and with classes also of those [B], to images
            [B, channels, size, size] in [−1, 1].
        discriminator: makes a module of images, and with classes also of those, to logits [B]. Its
            ``features`` maps images to what its last layer is given, [B, d].
        image_sizes: the sizes there are.
        noise_layer: the generator's layer that takes the noise, which regularizers leave out.
        output_layer: the discriminator's last layer, which they leave out, too.
    """

    generator: Callable[..., nn.Module]
    discriminator: Callable[..., nn.Module]
    image_sizes: tuple[int, ...] = IMAGE_SIZES
    noise_layer: str = "project.0"
    output_layer: str = "output"


NETWORKS = {
    "dcgan": NetworkPair(DCGANGenerator, SNDCGANDiscriminator),
    "resnet": NetworkPair(ResNetGenerator, ResNetDiscriminator),
}


def find_networks(name: str) -> NetworkPair:
    """The pair of that name, ours or an installed package's.

    Raises:
        UserError: for an unknown name, or an entry point that names no :class:`NetworkPair`.
    """
    return find(name, NETWORKS, GROUP, NetworkPair, "model")


def create_networks(
    name: str = "dcgan",
    *,
    width: float = 1.0,
    image_size: int = 32,
    spectral_normed: bool = True,
    channels: int = 3,
    classes: Sequence[str] = (),
    class_counts: Sequence[int] = (),
) -> tuple[nn.Module, nn.Module]:
    """A generator and a discriminator by name.

    Args:
        name: ``"dcgan"``, ``"resnet"``, or what an installed package offers.
        width: factor on the published numbers of channels, positive.
        image_size: one of the pair's sizes.
        spectral_normed: divide every weight of the discriminator by its largest singular value,
            estimated by one power iteration at each forward pass in training mode.
        channels: of the images, 3 or 1.
        classes: the names of the images' classes, for networks that are conditional on them.
        class_counts: how many training images each class has; default: equally many.

    Returns:
        The generator (noise [B, 128] to images in [−1, 1]), whose attributes ``classes`` and
        ``class_counts`` have their names and numbers, and the discriminator (images to logits [B]).
        With classes, both take them [B], int64, as a second argument.

    Raises:
        ValueError: if the name is unknown, or a size is out of range.

    Example:
        >>> generator, discriminator = create_networks("dcgan", width=0.25)
        >>> discriminator(generator(torch.randn(4, 128))).shape
        torch.Size([4])
        >>> generator, _ = create_networks("resnet", width=0.25, classes=("cat", "dog"))
        >>> generator(torch.randn(2, 128), torch.tensor([0, 1])).shape
        torch.Size([2, 3, 32, 32])
    """
    pair = find_networks(name)
    if image_size not in pair.image_sizes:
        raise UserError(f"expected an image size of {pair.image_sizes}, got {image_size}")
    if width <= 0:
        raise UserError(f"expected a positive width, got {width}")
    if channels not in (1, 3):
        raise UserError(f"expected images of 3 channels or of 1, got {channels}")
    sizes = {"width": width, "image_size": image_size, "channels": channels}
    generator = pair.generator(**sizes, num_classes=len(classes))
    discriminator = pair.discriminator(**sizes, num_classes=len(classes))
    generator.classes = tuple(classes)  # type: ignore[assignment]  # no tensor
    generator.class_counts = tuple(class_counts)  # type: ignore[assignment]
    if spectral_normed:
        for module in discriminator.modules():
            if isinstance(module, NORMED):
                spectral_norm(module)
    return generator, discriminator


def fits_batch(name: str, num: int) -> bool:
    """Whether a generator can be trained on so few images at a time: batch norm wants two values.

    No network is made: only the shapes of its maps are looked at.
    """
    pair = find_networks(name)
    size = pair.image_sizes[0]
    with torch.device("meta"):
        generator, _ = create_networks(name, image_size=size, spectral_normed=False)
        try:
            generator.train()(torch.empty(num, NOISE_DIM))
        except ValueError:
            return False
    return True


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
            if isinstance(module, NORMED):
                values[name] = torch.linalg.matrix_norm(module.weight.flatten(1), ord=2)
    network.train(was_training)
    return values
