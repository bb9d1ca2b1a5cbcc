"""Pairs of faces, in folds: read from a file in LFW's format, or drawn from labelled images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mhe_core.training.images import SUFFIXES, DataError, ImageSet, image_size
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Pair", "PairSet", "draw_pairs", "find_pairs", "read_pairs"]

ENUMERATED = 2000  # images among which all pairs are listed to draw from


@dataclass(frozen=True)
class Pair:
    """Two images by name of the person and number, whether they are one person, and the fold."""

    first: tuple[str, int]
    second: tuple[str, int]
    same: bool
    fold: int


@dataclass(frozen=True)
class PairSet:
    """Pairs of images, each image once.

    Attributes:
        images: all that occur in a pair.
        left: index of each pair's first image, ``[P]``.
        right: index of its second image, ``[P]``.
        same: whether they are one person, ``[P]``.
        fold: the pair's fold, ``[P]``.
        missing: images that were left out with their pairs, because they were not found.
    """

    images: ImageSet
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    same: NDArray[np.bool_]
    fold: NDArray[np.int64]
    missing: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.same)


def read_pairs(file: Path) -> list[Pair]:
    """Read a file in the format of LFW's pairs.txt, of any number of folds and pairs.

    The first line has the number of folds and N; then come, fold by fold, N lines
    ``name i j`` of the same person and N lines ``name i other j`` of different persons, with tabs
    or spaces between.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: for a malformed line; the message has its number.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"expected a file of pairs at {file}, found none")
    lines = file.read_text(encoding="utf-8").rstrip().splitlines()
    header = lines[0].split() if lines else []
    if len(header) != 2 or not all(part.isdecimal() and int(part) > 0 for part in header):
        got = lines[0] if lines else "an empty file"
        raise DataError(f"{file}:1: expected the numbers of folds and of pairs, got {got!r}")
    folds, per_fold = map(int, header)
    if len(lines) - 1 != 2 * folds * per_fold:
        raise DataError(
            f"{file}:{len(lines)}: expected {folds} folds of {per_fold} same and {per_fold} "
            f"different pairs, {2 * folds * per_fold} lines after the first, got {len(lines) - 1}"
        )
    pairs = []
    for number, line in enumerate(lines[1:]):
        fold, place = divmod(number, 2 * per_fold)
        pairs.append(parse_pair(line, place < per_fold, fold, f"{file}:{number + 2}"))
    return pairs


def parse_pair(line: str, same: bool, fold: int, where: str) -> Pair:
    """One line of the file; a DataError that begins with ``where`` if it is malformed."""
    parts = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
    expected = "name, number, number" if same else "name, number, other name, number"
    if len(parts) != (3 if same else 4):
        raise DataError(f"{where}: expected {expected}, got {line!r}")
    numbers = (parts[1], parts[2] if same else parts[3])
    if not all(part.isdecimal() for part in numbers):
        raise DataError(f"{where}: expected {expected}, with whole numbers, got {line!r}")
    other = parts[0] if same else parts[2]
    if not same and other == parts[0]:
        raise DataError(f"{where}: expected two different persons, got {line!r}")
    return Pair((parts[0], int(numbers[0])), (other, int(numbers[1])), same, fold)


def find_pairs(
    pairs: list[Pair], root: Path, size: tuple[int, int] | None = None, missing: str = "error"
) -> PairSet:
    """The images of the pairs in a folder of LFW's layout, Name/Name_0001.jpg.

    Args:
        pairs: what :func:`read_pairs` gave.
        root: the folder.
        size: height and width of the images; others are resized. Default: the first one's.
        missing: ``"error"``, or ``"skip"`` to leave out pairs with an image that is not there.

    Raises:
        FileNotFoundError: if the folder or, without skip, an image is missing; names them.
        DataError: if no pair is left.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(f"expected a folder of faces at {root}, found none")
    wanted = sorted({image for pair in pairs for image in (pair.first, pair.second)})
    files = {path.with_suffix(""): path for path in image_files(root, {n for n, _ in wanted})}
    names = {image: Path(root) / image[0] / f"{image[0]}_{image[1]:04d}" for image in wanted}
    lost = [image for image in wanted if names[image] not in files]
    if lost and missing == "error":
        some = ", ".join(str(names[image]) for image in lost[:10])
        raise FileNotFoundError(
            f"{len(lost)} images of the pairs are not there: {some}"
            f"{', …' if len(lost) > 10 else ''} (--missing skip leaves their pairs out)"
        )
    kept = [pair for pair in pairs if not {pair.first, pair.second} & set(lost)]
    if not kept:
        raise DataError(f"expected the images of at least one pair in {root}, found none")
    used = sorted({image for pair in kept for image in (pair.first, pair.second)})
    index = {image: i for i, image in enumerate(used)}
    paths = tuple(files[names[image]] for image in index)
    return PairSet(
        images_on_demand(paths, size),
        left=np.array([index[pair.first] for pair in kept]),
        right=np.array([index[pair.second] for pair in kept]),
        same=np.array([pair.same for pair in kept]),
        fold=np.array([pair.fold for pair in kept]),
        missing=tuple(f"{names[image].relative_to(root)}" for image in lost),
    )


def image_files(root: Path, people: set[str]) -> list[Path]:
    """The images of some people."""
    folders = [Path(root) / name for name in people]
    files = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    return [path for path in files if path.suffix.lower() in SUFFIXES]


def images_on_demand(paths: tuple[Path, ...], size: tuple[int, int] | None) -> ImageSet:
    """Image files of one size, decoded when they are embedded; one class, as none matters."""
    if size is None:
        size = image_size(paths[0])
    labels = torch.zeros(len(paths), dtype=torch.int64)
    return ImageSet(labels=labels, classes=("face",), size=size, pixels=None, files=paths)


def draw_pairs(images: ImageSet, folds: int = 10, per_fold: int = 30, seed: int = 0) -> PairSet:
    """Random pairs of labelled images, no pair twice: per fold as many same as different ones.

    Args:
        images: of at least two people.
        folds: how many.
        per_fold: same pairs a fold, and different ones; fewer where there are not so many.
        seed: of the draw.

    Raises:
        DataError: if there are not enough images for one pair of each kind in each fold.
    """
    generator = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(images), generator=generator)[:ENUMERATED].sort().values
    first, second = some[torch.triu_indices(len(some), len(some), 1)]
    same = images.labels[first] == images.labels[second]
    kinds = [kind.nonzero().flatten() for kind in (same, ~same)]
    per_fold = min(per_fold, *(len(kind) // folds for kind in kinds))
    if per_fold < 1:
        raise DataError(
            f"expected images for {folds} folds of same and different pairs, "
            f"got {len(kinds[0])} same and {len(kinds[1])} different pairs"
        )

    def drawn(kind: Tensor) -> Tensor:
        order = torch.randperm(len(kind), generator=generator)[: folds * per_fold]
        return kind[order].reshape(folds, per_fold)

    chosen = torch.cat([drawn(kind) for kind in kinds], dim=1).flatten()  # fold by fold
    return PairSet(
        images,
        left=first[chosen].numpy(),
        right=second[chosen].numpy(),
        same=same[chosen].numpy(),
        fold=np.repeat(np.arange(folds), 2 * per_fold),
    )
