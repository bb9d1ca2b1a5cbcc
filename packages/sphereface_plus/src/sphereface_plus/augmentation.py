"""Augmentation of aligned faces on their device: crop, colour, low resolution, erasing.

The first three are AdaFace's (Kim et al., CVPR 2022, section 4.1), the last is random erasing
(Zhong et al., AAAI 2020). All draw from torch's seeded generator; none changes an image's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["AUGMENTATIONS", "augment"]

CROPPED_AREA = (0.2, 1.0)  # of the image, that is left
ERASED_AREA = (0.02, 0.33)
RATIO = (3 / 4, 4 / 3)
COLOUR = (0.5, 1.5)
RESOLUTION = (0.2, 1.0)
GREY = (0.299, 0.587, 0.114)


def augment(images: Tensor, chances: Mapping[str, float]) -> Tensor:
    """Each image [B, 3, h, w], uint8, changed in each way with a probability of its own.

    Args:
        images: RGB.
        chances: probability by the names of :data:`AUGMENTATIONS`; others are 0.
    """
    for name, change in AUGMENTATIONS.items():
        chosen = torch.rand(len(images), device=images.device) < chances.get(name, 0.0)
        if chosen.any():
            images = images.clone()
            images[chosen] = change(images[chosen])
    return images


def crop(images: Tensor) -> Tensor:
    """Black but for a random rectangle of a fifth of the image or more, which stays in place."""
    return torch.where(rectangles(images, CROPPED_AREA), images, 0)


def erase(images: Tensor) -> Tensor:
    """A random rectangle of 2 to 33 % of the image becomes noise."""
    return torch.where(rectangles(images, ERASED_AREA), torch.randint_like(images, 0, 256), images)


def recolour(images: Tensor) -> Tensor:
    """Brightness, contrast and saturation times random factors of 0.5 to 1.5."""
    brightness, contrast, saturation = uniform(COLOUR, (3, len(images), 1, 1, 1), images)
    x = images.float() * brightness
    weights = torch.tensor(GREY, device=images.device).view(1, 3, 1, 1)
    mean = (x * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    x = mean + (x - mean) * contrast
    grey = (x * weights).sum(1, keepdim=True)
    return levels(grey + (x - grey) * saturation)


def lower_resolution(images: Tensor) -> Tensor:
    """Shrunk to a random fifth or more of its height and width, and enlarged again."""
    height, width = images.shape[2:]
    scales = uniform(RESOLUTION, (len(images),), images).tolist()
    changed = []
    for image, scale in zip(images.float(), scales, strict=True):
        small = [max(1, round(side * scale)) for side in (height, width)]
        shrunk = functional.interpolate(image[None], small, mode="area")
        changed.append(
            functional.interpolate(shrunk, (height, width), mode="bilinear", align_corners=False)
        )
    return levels(torch.cat(changed))


AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "crop": crop,
    "colour": recolour,
    "low_resolution": lower_resolution,
    "erasing": erase,
}


def rectangles(images: Tensor, area: tuple[float, float]) -> Tensor:
    """A random rectangle in each image, as a mask [B, 1, h, w]."""
    height, width = images.shape[2:]
    share = uniform(area, (len(images),), images)
    ratio = uniform((math.log(RATIO[0]), math.log(RATIO[1])), (len(images),), images).exp()
    tall = (height * (share * ratio).sqrt()).clamp(1, height).round()
    broad = (width * (share / ratio).sqrt()).clamp(1, width).round()
    top, left = torch.rand(2, len(images), device=images.device)
    rows = inside(height, (top * (height - tall + 1)).floor(), tall)
    columns = inside(width, (left * (width - broad + 1)).floor(), broad)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def inside(size: int, start: Tensor, length: Tensor) -> Tensor:
    """Which of ``size`` places lie in each span [B]: a mask [B, size]."""
    place = torch.arange(size, device=start.device)
    return (place >= start[:, None]) & (place < (start + length)[:, None])


def uniform(bounds: tuple[float, float], shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Random numbers between the bounds."""
    low, high = bounds
    return low + (high - low) * torch.rand(shape, device=like.device)


def levels(x: Tensor) -> Tensor:
    """Rounded and cut to uint8."""
    return x.round().clamp(0, 255).to(torch.uint8)
