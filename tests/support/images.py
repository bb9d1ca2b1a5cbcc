"""Small folders of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["noise_folder"]


def noise_folder(folder: Path, size: int, *, seed: int = 0, start: int = 0) -> Path:
    """``train`` and ``test`` with folders a, b and c of eight images of noise, a_0000.png, …."""
    generator = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name in "abc":
            (folder / split / name).mkdir(parents=True)
            for i in range(start, start + 8):
                pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{name}_{i:04d}.png")
    return folder
