"""Images with labels, checked before training starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

__all__ = ["DataError", "ImageSet", "load_folder", "load_images"]

Size = tuple[int, int]

# A set that takes more memory than this is decoded when its images are needed.
IN_MEMORY = 2 * 2**30


class DataError(ValueError):
    """Images that cannot be trained on; names the file or folder."""


@dataclass(frozen=True)
class ImageSet:
    """Images as uint8 [N, 3, height, width], decoded in memory or on demand.

    Attributes:
        labels: class of each image, int64 [N], in [0, C).
        classes: names of the C classes.
        size: height and width in pixels.
        pixels: all images, or None where they are decoded on demand.
        paths: the images' files, where there are any.
    """

    labels: Tensor
    classes: tuple[str, ...]
    size: Size
    pixels: Tensor | None
    paths: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A batch, as torch's DataLoader asks for it: images [B, 3, height, width], labels [B]."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        if self.pixels is not None:
            return self.pixels[index], self.labels[index]
        return torch.stack([decode(self.paths[i], self.size) for i in indices]), self.labels[index]

    def subset(self, indices: Tensor) -> ImageSet:
        """The images at the given indices [M], int64, with the same classes."""
        return replace(
            self,
            labels=self.labels[indices],
            pixels=None if self.pixels is None else self.pixels[indices],
            paths=tuple(self.paths[i] for i in indices.tolist()) if self.paths else (),
        )

    def split(self, fraction: float, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """The images without, and the images of, a random ``fraction`` of each class."""
        generator = torch.Generator().manual_seed(seed)
        held_out = torch.zeros(len(self), dtype=torch.bool)
        for label in range(len(self.classes)):
            members = (self.labels == label).nonzero().flatten()
            order = members[torch.randperm(len(members), generator=generator)]
            held_out[order[: round(fraction * len(members))]] = True
        return self.subset((~held_out).nonzero().flatten()), self.subset(
            held_out.nonzero().flatten()
        )


def load_images(
    data: str,
    split: str,
    *,
    size: Size | None = None,
    data_dir: Path = Path(),
    download: bool = False,
) -> ImageSet:
    """One split of a data set, in RGB.

    Args:
        data: ``digits`` (1,797 images embedded in scikit-learn, 8×8, enlarged), ``cifar10``,
            ``cifar100``, or a folder with ``train/<class>/…`` and ``test/<class>/…``.
        split: ``train`` or ``test``.
        size: height and width to which images are resized; None: 32×32 for digits, else the
            images' own, which must then be equal.
        data_dir: where torchvision keeps cifar10 and cifar100.
        download: fetch them if they are not there.

    Raises:
        DataError: for a missing folder, an empty class, an unreadable image, a class in test
            that is not in train.
    """
    if data == "digits":
        return _digits(split, size or (32, 32))
    if data in ("cifar10", "cifar100"):
        return _cifar(data, split, size, data_dir, download)
    root = Path(data)
    if not root.is_dir():
        raise DataError(
            f"expected --data as digits, cifar10, cifar100 or a folder, got {data!r}, "
            "which is not a folder"
        )
    if split == "train":
        return load_folder(root / "train", size=size)
    train = _scan(root / "train")
    images = load_folder(root / split, size=size or _size_of(train.samples[0][0]))
    if unknown := sorted(set(images.classes) - set(train.classes)):
        raise DataError(
            f"{root / split} has classes that {root / 'train'} has not: {', '.join(unknown)}"
        )
    to_train = torch.tensor([train.classes.index(name) for name in images.classes])
    return replace(images, labels=to_train[images.labels], classes=tuple(train.classes))


@lru_cache(maxsize=8)
def load_folder(root: Path, *, size: Size | None = None) -> ImageSet:
    """Images of a folder with one folder a class, ``<class>/…``, every file checked.

    Args:
        root: the folder.
        size: height and width to which images are resized; None: their own, which must be equal.

    Raises:
        DataError: for a missing folder, a class without images, or an unreadable image.
    """
    found = _scan(root)
    paths = tuple(Path(path) for path, _ in found.samples)
    height, width = size or _size_of(paths[0])
    check: Callable[[Path], Tensor | None]
    if len(paths) * 3 * height * width <= IN_MEMORY:
        check = partial(decode, size=(height, width), exact=size is None)
    else:
        check = _check_header
    with ThreadPoolExecutor() as pool:
        decoded = [image for image in pool.map(check, paths) if image is not None]
    return ImageSet(
        labels=torch.tensor([label for _, label in found.samples]),
        classes=tuple(found.classes),
        size=(height, width),
        pixels=torch.stack(decoded) if decoded else None,
        paths=paths,
    )


def decode(path: Path, size: Size, exact: bool = False) -> Tensor:
    """One image file as RGB, uint8 [3, height, width], resized unless it must be ``exact``."""
    try:
        with Image.open(path) as image:
            if exact and (image.height, image.width) != size:
                raise DataError(
                    f"{path} is {image.height}×{image.width} pixels, the first image is "
                    f"{size[0]}×{size[1]}: give the size to which all are resized"
                )
            return to_tensor(image, size)
    except DataError:
        raise
    except Exception as error:  # PIL raises many types for a damaged file
        raise DataError(f"cannot read the image {path}: {error}") from error


def to_tensor(image: Image.Image, size: Size) -> Tensor:
    """A PIL image as RGB, uint8 [3, height, width]."""
    image = image.convert("RGB")
    if (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _check_header(path: Path) -> None:
    try:
        with Image.open(path) as image:
            image.verify()
    except Exception as error:
        raise DataError(f"cannot read the image {path}: {error}") from error


def _scan(root: Path) -> datasets.ImageFolder:
    if not root.is_dir():
        raise DataError(f"expected a folder of images at {root}, found none")
    try:
        return datasets.ImageFolder(str(root))
    except FileNotFoundError as error:
        raise DataError(f"{root}: {error}") from error


def _size_of(path: str | Path) -> Size:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:
        raise DataError(f"cannot read the image {path}: {error}") from error


@lru_cache(maxsize=4)
def _digits(split: str, size: Size) -> ImageSet:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    parts = train_test_split(
        np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0
    )
    indices = np.sort(parts[0 if split == "train" else 1])
    pixels = [
        to_tensor(Image.fromarray((image * (255 / 16)).round().astype(np.uint8)), size)
        for image in digits.images[indices]
    ]
    return ImageSet(
        labels=torch.from_numpy(digits.target[indices]).long(),
        classes=tuple(str(name) for name in digits.target_names),
        size=size,
        pixels=torch.stack(pixels),
    )


@lru_cache(maxsize=4)
def _cifar(data: str, split: str, size: Size | None, data_dir: Path, download: bool) -> ImageSet:
    dataset = datasets.CIFAR10 if data == "cifar10" else datasets.CIFAR100
    try:
        found = dataset(str(data_dir), train=split == "train", download=download)
    except RuntimeError as error:
        raise DataError(
            f"{data} is not in {data_dir}: give its folder with --data-dir, or --download"
        ) from error
    pixels = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    if size is not None and size != (32, 32):
        pixels = torch.stack([to_tensor(Image.fromarray(image), size) for image in found.data])
    return ImageSet(
        labels=torch.tensor(found.targets),
        classes=tuple(found.classes),
        size=size or (32, 32),
        pixels=pixels,
    )
