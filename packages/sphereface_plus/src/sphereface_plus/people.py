"""From what --data names to the labelled images of people: a folder, a pack, or a list."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from mhe_core.training.images import (
    DataError,
    ImageFile,
    ImageSet,
    Size,
    check_files,
    image_size,
    labelled_images,
    load_folder,
)

from sphereface_plus.packs import RecordPack, check_pack
from sphereface_plus.textfile import read_lines

__all__ = ["describe", "load_people"]

logger = logging.getLogger(__name__)

LISTS = (".lst", ".list", ".txt", ".csv", ".tsv")
LOOKED_AT = 1000  # images whose sizes are looked at for the description


def load_people(data: str, size: Size | None = None) -> ImageSet:
    """The images of people, each image checked.

    Args:
        data: a folder with one folder a person (or with ``train/`` of such folders); insightface's
            pack, ``train.rec`` or its folder; or a list of lines ``image label``.
        size: height and width to which images are resized; None: their own, which must be equal.

    Raises:
        DataError: if it is none of these, damaged, or has an image that cannot be read.
    """
    path = Path(data)
    if path.suffix == ".rec" or (path.is_dir() and any(path.glob("[!.]*.rec"))):
        return load_pack(path, size)
    if path.is_file() and path.suffix.lower() in LISTS:
        return load_list(path, size)
    if path.is_dir():
        return load_folder(path / "train" if (path / "train").is_dir() else path, size=size)
    raise DataError(
        "expected --data as digits, a folder of aligned faces, a pack (train.rec) or a list "
        f"({', '.join(LISTS)}), got {data!r}"
    )


@lru_cache(maxsize=8)
def load_pack(path: Path, size: Size | None = None) -> ImageSet:
    """The images of insightface's pack."""
    pack = RecordPack(path)
    for remark in pack.remarks:
        logger.info("%s: %s", pack.file, remark)
    labels = pack.labels.unique(return_inverse=True)[1]
    return labelled_images(
        pack,
        labels,
        pack.classes,
        size=size,
        check=lambda expected: check_pack(pack, expected),
    )


@lru_cache(maxsize=8)
def load_list(file: Path, size: Size | None = None) -> ImageSet:
    """The images of a list, a line of which is an image and its label, a number or a name.

    Images are found from the list's own folder on. The lists of im2rec (number, label, image) and
    of insightface (aligned, image, label) are known by where the image stands; of several labels
    the first counts.

    Raises:
        FileNotFoundError: if there is no such list.
        DataError: for a malformed line; names its number.
    """
    entries = [entry_of(line, f"{file}:{n}") for n, line in enumerate(read_lines(file), 1)]
    names = {label for _, label in entries}
    numeric = all(name.isdecimal() for name in names)
    classes = sorted(names, key=int if numeric else str)
    number = {name: label for label, name in enumerate(classes)}
    files = [file.parent / image for image, _ in entries]
    return labelled_images(
        files,
        torch.tensor([number[label] for _, label in entries]),
        tuple(classes),
        size=size,
        check=lambda expected: check_files(file.parent, files, expected),
    )


def entry_of(line: str, where: str) -> tuple[str, str]:
    """Image and label of a line."""
    tabbed = "\t" in line
    parts = [part.strip() for part in (line.split("\t") if tabbed else line.rsplit(maxsplit=1))]
    place = next((i for i, part in enumerate(parts) if not is_number(part)), None)
    if place is None or len(parts) < 2 or "" in parts:
        raise DataError(f"{where}: expected an image and a label, got {line!r:.80}")
    label = parts[1] if place != 1 else parts[2] if len(parts) > 2 else parts[0]
    if is_number(label):
        value = float(label)
        if not value.is_integer() or value < 0:
            raise DataError(f"{where}: expected a whole number ≥ 0 as the label, got {label!r}")
        label = label if label.isdecimal() else str(int(value))
    return parts[place], label


def is_number(text: str) -> bool:
    """Whether the text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def describe(images: ImageSet) -> str:
    """One line on a set: images, people, images a person, sizes.

    Example:
        >>> from mhe_core.training.images import load_images
        >>> describe(load_images("digits", "train"))
        '1437 images of 10 people, 139 to 146 each (median 144), 32×32 pixels'
    """
    each = images.labels.bincount(minlength=len(images.classes))
    low, middle, high = int(each.min()), int(each.median()), int(each.max())
    many = f"{low}" if low == high else f"{low} to {high}"
    height, width = images.size
    text = (
        f"{len(images)} images of {len(images.classes)} people, {many} each (median {middle}), "
        f"{height}×{width} pixels"
    )
    sizes = file_sizes(images)
    if set(sizes) - {images.size}:
        shown = ", ".join(f"{h}×{w} ({n})" for (h, w), n in sizes.most_common(3))
        more = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
        text += f", resized from {shown}{more} of {sizes.total()} images looked at"
    return text


def file_sizes(images: ImageSet) -> Counter[Size]:
    """How many images have which size, of up to a thousand, evenly over the set."""
    if not images.files:
        return Counter()
    step = max(1, -(-len(images) // LOOKED_AT))
    files: Sequence[ImageFile] = [images.file(i) for i in range(0, len(images), step)]
    return Counter(image_size(file) for file in files)
