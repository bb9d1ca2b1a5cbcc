"""The sizes that all networks share."""

from __future__ import annotations

__all__ = ["IMAGE_SIZES", "NOISE_DIM", "scaled"]

NOISE_DIM = 128
IMAGE_SIZES = (32, 48, 64, 128)


def scaled(channels: int, width: float) -> int:
    """A number of channels times the width factor, at least one."""
    return max(1, round(channels * width))
