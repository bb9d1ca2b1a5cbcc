"""Differentiable augmentation of what the discriminator sees, real and generated alike.

Zhao et al., *Differentiable Augmentation for Data-Efficient GAN Training* (NeurIPS 2020,
arXiv:2006.10738): with few images a discriminator learns them by heart. Augmented on both sides,
and differentiably, so that the generator learns through it, it cannot, and the generator does not
learn to draw augmented images. What is drawn comes from the global generators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["AUGMENTATIONS", "augment"]

TRANSLATION = 1 / 8  # of the image's size, the furthest
CUTOUT = 1 / 2  # of the image's size, the side of what is cut out


def augment(images: Tensor, names: Sequence[str]) -> Tensor:
    """Images [B, 3, h, w] in [−1, 1] after the named augmentations, each image by its own draw.

    Args:
        images: real or generated ones; gradients go through.
        names: of :data:`AUGMENTATIONS`, in the order in which they are applied.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> augment(torch.zeros(4, 3, 32, 32), ["color", "translation", "cutout"]).shape
        torch.Size([4, 3, 32, 32])
    """
    for name in names:
        if name not in AUGMENTATIONS:
            raise ValueError(f"expected augmentations of {sorted(AUGMENTATIONS)}, got {name!r}")
        images = AUGMENTATIONS[name](images)
    return images


def color(x: Tensor) -> Tensor:
    """Brightness ± 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5."""
    brightness, saturation, contrast = torch.rand(
        3, len(x), 1, 1, 1, device=x.device, dtype=x.dtype
    )
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def translation(x: Tensor) -> Tensor:
    """Shifted by up to an eighth of the size in each direction; black (0) comes in."""
    *_, h, w = x.shape
    most = [round(size * TRANSLATION) for size in (h, w)]
    shifts = [torch.randint(-m, m + 1, (len(x), 1), device=x.device) for m in most]
    rows = torch.arange(h, device=x.device) + shifts[0] + most[0]
    columns = torch.arange(w, device=x.device) + shifts[1] + most[1]
    padded = pad(x, (most[1], most[1], most[0], most[0])).permute(0, 2, 3, 1)
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(x: Tensor) -> Tensor:
    """A square of half the size set to 0, its centre anywhere in the image."""
    inside = torch.ones((), dtype=torch.bool, device=x.device)
    for dim, size in ((2, x.shape[2]), (3, x.shape[3])):
        side = round(size * CUTOUT)
        start = torch.randint(0, size + 1 - side % 2, (len(x), 1), device=x.device) - side // 2
        place = torch.arange(size, device=x.device)
        hit = (place >= start) & (place < start + side)
        inside = inside & hit.view(len(x), 1, *([size, 1] if dim == 2 else [1, size]))
    return x.masked_fill(inside, 0)


AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
}
