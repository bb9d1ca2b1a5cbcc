"""Data sets known by name: scikit-learn's digits, and torchvision's CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

from mhe_core.training.images.reading import DataError, Size, resize, to_tensor
from mhe_core.training.images.sets import ImageSet
from mhe_core.training.lock import FolderLock

__all__ = ["load_cifar", "load_digits_split"]


@lru_cache(maxsize=4)
def load_digits_split(split: str, size: Size) -> ImageSet:
    """A split of scikit-learn's 1,797 digits: a fixed fifth of each class is for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    parts = train_test_split(
        np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0
    )
    indices = np.sort(parts[0 if split == "train" else 1])
    pixels = [
        rgb(Image.fromarray((image * (255 / 16)).round().astype(np.uint8)), size)
        for image in digits.images[indices]
    ]
    return ImageSet(
        labels=torch.from_numpy(digits.target[indices]).long(),
        classes=tuple(str(name) for name in digits.target_names),
        size=size,
        pixels=torch.stack(pixels),
    )


@lru_cache(maxsize=4)
def load_cifar(
    data: str, split: str, size: Size | None, data_dir: Path, download: bool
) -> ImageSet:
    """A split of ``cifar10`` or ``cifar100``, as torchvision keeps them in ``data_dir``."""
    dataset = datasets.CIFAR10 if data == "cifar10" else datasets.CIFAR100
    with _in_turn(data_dir, download):
        try:
            found = dataset(str(data_dir), train=split == "train", download=download)
        except RuntimeError as error:
            raise DataError(
                f"{data} is not in {data_dir}: give its folder with --data-dir, or --download"
            ) from error
    pixels = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    if size is not None and size != (32, 32):
        pixels = torch.stack([rgb(Image.fromarray(image), size) for image in found.data])
    return ImageSet(
        labels=torch.tensor(found.targets),
        classes=tuple(found.classes),
        size=size or (32, 32),
        pixels=pixels,
    )


@contextmanager
def _in_turn(folder: Path, download: bool) -> Iterator[None]:
    """Of several processes, such as torchrun's, one downloads; the others wait, and find it there.

    By a lock, for which nobody has to know of the others, and no time runs out.
    """
    if not download:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder, ".download.lock")
    lock.acquire(wait=True)
    try:
        yield
    finally:
        lock.release()


def rgb(image: Image.Image, size: Size) -> Tensor:
    """An 8-bit image of Pillow's as uint8 [3, height, width]."""
    return to_tensor(resize(image.convert("RGB"), size))
