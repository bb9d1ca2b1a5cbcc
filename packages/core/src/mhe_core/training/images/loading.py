"""From a data set's name or folder to its images, each checked before training starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mhe_core.training.images.checking import check_files, check_size, for_each
from mhe_core.training.images.folders import find_classes
from mhe_core.training.images.named import load_cifar, load_digits_split
from mhe_core.training.images.reading import (
    DataError,
    ImageFile,
    Size,
    image_size,
    read_image,
    resize,
    to_tensor,
)
from mhe_core.training.images.sets import ImageSet

__all__ = ["labelled_images", "load_folder", "load_images", "read_all", "with_classes"]

logger = logging.getLogger(__name__)

# A set that takes more memory than this is decoded when its images are needed.
IN_MEMORY = 2 * 2**30


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
        return load_digits_split(split, size or (32, 32))
    if data in ("cifar10", "cifar100"):
        return load_cifar(data, split, size, data_dir, download)
    root = Path(data)
    if not root.is_dir():
        raise DataError(
            f"expected --data as digits, cifar10, cifar100 or a folder, got {data!r}, "
            "which is not a folder"
        )
    if split == "train":
        return load_folder(root / "train", size=size)
    classes = find_classes(root / "train")
    size = size or image_size(classes.paths[0])
    return with_classes(load_folder(root / split, size=size), classes.classes)


def with_classes(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    """The images with labels that count in other ``classes``, such as those trained on.

    Raises:
        DataError: if the images have a class that is not among them.
    """
    if unknown := sorted(set(images.classes) - set(classes)):
        raise DataError(
            f"expected images of the {len(classes)} classes trained on, got some of "
            f"{', '.join(unknown)}"
        )
    label = {name: number for number, name in enumerate(classes)}
    new = torch.tensor([label[name] for name in images.classes])
    return replace(images, labels=new[images.labels], classes=tuple(classes))


@lru_cache(maxsize=8)
def load_folder(root: Path, *, size: Size | None = None) -> ImageSet:
    """Images of a folder with one folder a class, ``<class>/…``, every file checked to its end.

    Up to 2 GiB of pixels are decoded now and kept; larger sets are decoded when their images are
    needed, and checked once (:func:`check_files`). What was found, and what left out, is logged.

    Args:
        root: the folder.
        size: height and width to which images are resized; None: their own, which must be equal.

    Raises:
        DataError: for a missing folder, a class without images, or unreadable images.
    """
    found = find_classes(root)
    logger.info(found.describe())
    files = found.paths
    return labelled_images(
        files,
        torch.tensor(found.labels),
        found.classes,
        size=size,
        check=lambda expected: check_files(root, files, expected),
    )


def labelled_images(
    files: Sequence[ImageFile],
    labels: Tensor,
    classes: tuple[str, ...],
    *,
    size: Size | None = None,
    check: Callable[[Size | None], object],
) -> ImageSet:
    """An image set of files: up to 2 GiB of pixels are decoded now, others when they are needed.

    Args:
        files: paths, or what opens like one.
        labels: int64 [N], in [0, C).
        classes: names of the C classes.
        size: height and width to which images are resized; None: their own, which must be equal.
        check: reads all images to their ends where they are not decoded now; called with the
            height and width that all must have, or None.

    Raises:
        DataError: for unreadable images, or images of another size than the first.
    """
    shape = size or image_size(files[0])
    pixels = None
    if len(files) * 3 * shape[0] * shape[1] <= IN_MEMORY:
        pixels = read_all(files, shape, exact=size is None)
    else:
        check(None if size else shape)
    return ImageSet(labels=labels, classes=classes, size=shape, pixels=pixels, files=files)


def read_all(files: Sequence[ImageFile], size: Size, exact: bool = False) -> Tensor:
    """All images as uint8 [N, 3, height, width], resized unless they must be of ``exact`` size."""
    pixels = torch.empty(len(files), 3, *size, dtype=torch.uint8)

    def read(index: int) -> None:
        image = read_image(files[index])
        if exact:
            check_size(files[index], (image.height, image.width), size)
        pixels[index] = to_tensor(resize(image, size))

    for_each(read, len(files))
    return pixels
