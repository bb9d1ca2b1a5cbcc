"""Small folders of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["noise_folder"]


def noise_folder(folder: Path, size: int, classes: int = 3, each: int = 8, seed: int = 0) -> Path:
    """``train`` and ``test`` with folders a, b, … of PNG images of noise."""
    generator = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name in "abcdefgh"[:classes]:
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{name}_{i:04d}.png")
    return folder
