"""Images as networks see them, in [−1, 1], and as everybody else does, in uint8."""

from __future__ import annotations

import torch
from mhe_core.errors import UserError
from mhe_core.training.images import DataError, ImageSet, load_images
from torch import Tensor

from mhe_gan.config import GANConfig
from mhe_gan.networks import find_networks

__all__ = ["as_generated", "load_split", "to_images", "to_pixels"]


def load_split(config: GANConfig, split: str = "train") -> ImageSet:
    """The training or test images, square and of a size that the networks have.

    Raises:
        DataError: if the images can't be read, or have another size and none is given.
    """
    sizes = find_networks(config.model).image_sizes
    if config.image_size is not None and config.image_size not in sizes:
        raise UserError(
            f"expected --image-size of {', '.join(map(str, sizes))} for the networks "
            f"{config.model}, got {config.image_size}"
        )
    size = None if config.image_size is None else (config.image_size, config.image_size)
    images = load_images(
        config.data, split, size=size, data_dir=config.data_dir, download=config.download
    )
    height, width = images.size
    if height != width or height not in sizes:
        raise DataError(
            f"expected images of {' or '.join(f'{n}×{n}' for n in sizes)} pixels, those of "
            f"{config.data} have {height}×{width}: give --image-size"
        )
    return images


def to_images(pixels: Tensor, channels: int = 3) -> Tensor:
    """uint8 [B, 3, h, w] to float32 [B, channels, h, w] in [−1, 1].

    One channel is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), as Pillow's mode L.

    Example:
        >>> to_images(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([-1.,  1.])
    """
    images = pixels.float()
    if channels == 1:
        red, green, blue = images.split(1, dim=1)
        images = 0.299 * red + 0.587 * green + 0.114 * blue
    return images / 127.5 - 1


def as_generated(pixels: Tensor, channels: int = 3) -> Tensor:
    """uint8 [B, 3, h, w] as a generator of so many channels could draw them: of one, in grey.

    Example:
        >>> red_green_blue = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
        >>> as_generated(red_green_blue, channels=1).flatten()
        tensor([18, 18, 18], dtype=torch.uint8)
    """
    if channels == 3:
        return pixels
    return to_pixels(to_images(pixels, channels)).expand(-1, 3, -1, -1)


def to_pixels(images: Tensor) -> Tensor:
    """Floating point in [−1, 1] to the nearest uint8; the inverse of :func:`to_images`.

    Example:
        >>> to_pixels(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([  0, 128, 255], dtype=torch.uint8)
    """
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
