"""Augmentation of a whole batch on its device, drawn from torch's seeded generator."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["normalize", "random_crop", "random_flip"]


def normalize(pixels: Tensor) -> Tensor:
    """uint8 images [B, C, h, w] as float32 in [−1, 1): (x − 127.5) / 128, as published."""
    return (pixels.float() - 127.5) / 128


def random_flip(images: Tensor) -> Tensor:
    """Each image [B, C, h, w] mirrored left to right with probability 1/2."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(-1), images)


def random_crop(images: Tensor, padding: int = 4) -> Tensor:
    """Each image [B, C, h, w] mirrored at its border by ``padding`` and cropped to its size.

    The padding is symmetric (the border's own pixels are repeated), as published.
    """
    if padding == 0:
        return images
    B, C, height, width = images.shape
    index = torch.arange(height + 2 * padding, device=images.device) - padding
    rows = _mirrored(index, height)
    columns = _mirrored(torch.arange(width + 2 * padding, device=images.device) - padding, width)
    top, left = torch.randint(2 * padding + 1, (2, B, 1), device=images.device)
    rows = rows[top + torch.arange(height, device=images.device)]  # [B, h]
    columns = columns[left + torch.arange(width, device=images.device)]  # [B, w]
    images = images.gather(2, rows[:, None, :, None].expand(B, C, height, width))
    return images.gather(3, columns[:, None, None, :].expand(B, C, height, width))


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Positions outside [0, size) reflected at the border, the border pixel included."""
    index = torch.where(index < 0, -index - 1, index)
    return torch.where(index >= size, 2 * size - 1 - index, index)
