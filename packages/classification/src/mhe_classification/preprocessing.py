"""From pixels to what a network is given: shifted and scaled, channel by channel."""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn

from mhe_classification.config import ClassificationConfig

__all__ = ["PUBLISHED", "Normalize", "new_normalize"]

PUBLISHED = ((127.5,) * 3, (128.0,) * 3)  # mean and standard deviation of the published programs


class Normalize(nn.Module):
    """uint8 images [B, 3, h, w] as (x − mean) / std in float32.

    Args:
        mean: of the red, green and blue pixels, on the scale of 0 to 255.
        std: what their differences from it are divided by.
        channels_last: give the images in that memory format.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], channels_last: bool = False
    ) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(values, dtype=torch.float32)[:, None, None]
            self.register_buffer(name, buffer, persistent=False)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalized images, float32 [B, 3, h, w]."""
        return ((pixels.float() - self.mean) / self.std).contiguous(
            memory_format=self.memory_format
        )

    def constants(self) -> dict[str, list[float]]:
        """``mean`` and ``std`` as plain values."""
        return {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}


def new_normalize(config: ClassificationConfig) -> Normalize:
    """What ``--normalization`` asks for: the published constants, or those of timm's weights."""
    mean, std = PUBLISHED
    if config.normalization == "model":
        known = timm.get_pretrained_cfg(config.model)
        mean = tuple(255 * value for value in known.mean)
        std = tuple(255 * value for value in known.std)
    return Normalize(mean, std, config.channels_last)
