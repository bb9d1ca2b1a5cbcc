"""Pairs of faces, in folds: with the images that a file of pairs names, or drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from mhe_core.training.images import (
    SUFFIXES,
    DataError,
    ImageFile,
    ImageSet,
    for_each,
    image_size,
    read_to_the_end,
)
from numpy.typing import NDArray
from torch import Tensor

from sphereface_plus.packs import EncodedImage, read_verification_pack
from sphereface_plus.pair_files import Pair

__all__ = [
    "PairSet",
    "check_folds",
    "check_pairs",
    "draw_pairs",
    "find_pairs",
    "images_on_demand",
    "pack_pairs",
]

ENUMERATED = 2000  # images of which all pairs are listed to draw from


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

    @cached_property
    def digest(self) -> str:
        """Stands for the pairs and their images' names, not for where these are."""
        known = hashlib.sha256(self.images.digest.encode())
        for part in (self.left, self.right, self.same, self.fold):
            known.update(np.ascontiguousarray(part).tobytes())
        return known.hexdigest()


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
    files = image_files(Path(root), wanted)
    lost = [image for image in wanted if image not in files]
    if lost and missing == "error":
        some = ", ".join(str(Path(root) / image) for image in lost[:10])
        raise FileNotFoundError(
            f"{len(lost)} images of the pairs are not there: {some}"
            f"{', …' if len(lost) > 10 else ''} (--missing skip leaves their pairs out)"
        )
    kept = [pair for pair in pairs if not {pair.first, pair.second} & set(lost)]
    if not kept:
        raise DataError(f"expected the images of at least one pair in {root}, found none")
    sides = [[files[pair.first] for pair in kept], [files[pair.second] for pair in kept]]
    used = sorted({file for side in sides for file in side})
    index = {file: i for i, file in enumerate(used)}
    left, right = (np.array([index[file] for file in side]) for side in sides)
    return PairSet(
        images_on_demand(used, size),
        left=left,
        right=right,
        same=np.array([pair.same for pair in kept]),
        fold=np.array([pair.fold for pair in kept]),
        missing=tuple(lost),
    )


def image_files(root: Path, wanted: list[str]) -> dict[str, Path]:
    """The files of those images that are there, by their paths with or without a suffix.

    Raises:
        DataError: if several files could be the image; names them.
    """
    found: dict[str, Path] = {}
    listings: dict[Path, dict[str, list[Path]]] = {}
    for image in wanted:
        place = root / image
        if place.parent not in listings:
            listings[place.parent] = images_by_stem(place.parent)
        stem = place.stem if place.suffix.lower() in SUFFIXES else place.name
        files = listings[place.parent].get(stem, [])
        exact = [file for file in files if file.name == place.name]
        if len(files) > 1 and not exact:
            names = ", ".join(sorted(file.name for file in files))
            raise DataError(f"expected one image {place}, found {names}")
        if files:
            found[image] = (exact or files)[0]
    return found


def images_by_stem(folder: Path) -> dict[str, list[Path]]:
    """The image files of a folder by their names without suffix, hidden ones left out."""
    stems: dict[str, list[Path]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            stems.setdefault(path.stem, []).append(path)
    return stems


def images_on_demand(files: Sequence[ImageFile], size: tuple[int, int] | None = None) -> ImageSet:
    """Image files of one size, decoded when they are embedded; one class, as none matters."""
    if size is None:
        size = image_size(files[0])
    labels = torch.zeros(len(files), dtype=torch.int64)
    return ImageSet(labels=labels, classes=("face",), size=size, pixels=None, files=files)


def check_folds(pairs: PairSet) -> None:
    """Whether the pairs can be verified: a fold's threshold comes from the other folds.

    Raises:
        DataError: if there is one fold only, or no pair of a kind.
    """
    folds, same = len(np.unique(pairs.fold)), int(pairs.same.sum())
    if folds < 2:
        raise DataError(
            "expected pairs in at least two folds, since a fold's threshold comes from the others, "
            f"got {folds}"
        )
    if not 0 < same < len(pairs):
        raise DataError(f"expected same and different pairs, got {same} and {len(pairs) - same}")


def check_pairs(pairs: PairSet) -> None:
    """All that verifying the pairs needs, before hours of training.

    Raises:
        DataError: if there is one fold only, no pair of a kind, or images that cannot be read.
    """
    check_folds(pairs)
    images = pairs.images
    if images.pixels is None:
        for_each(lambda i: read_to_the_end(images.file(i)), len(images))


def pack_pairs(file: Path, size: tuple[int, int] | None = None) -> PairSet:
    """The pairs of a verification pack, ``lfw.bin`` and its like, in ten folds in their order.

    Args:
        file: the pack.
        size: height and width of the images; others are resized. Default: the first one's.

    Raises:
        DataError: if the pack is damaged.
    """
    images, same = read_verification_pack(file)
    files = [EncodedImage(f"image {i} of {file}", image) for i, image in enumerate(images)]
    folds = np.array_split(np.arange(len(same)), min(10, len(same)))
    return PairSet(
        images_on_demand(files, size),
        left=np.arange(0, len(images), 2),
        right=np.arange(1, len(images), 2),
        same=np.array(same),
        fold=np.repeat(np.arange(len(folds)), [len(fold) for fold in folds]),
    )


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
    counts = images.labels.bincount()
    same_pairs = int((counts * (counts - 1) // 2).sum())
    pairs = (same_pairs, len(images) * (len(images) - 1) // 2 - same_pairs)
    per_fold = min(per_fold, *(number // folds for number in pairs))
    if per_fold < 1:
        raise DataError(
            f"expected images for {folds} folds of same and different pairs, "
            f"got {pairs[0]} same and {pairs[1]} different pairs"
        )
    generator = torch.Generator().manual_seed(seed)
    draw = draw_listed if len(images) <= ENUMERATED else draw_unlisted
    drawn = [draw(images.labels, kind, folds * per_fold, generator) for kind in (True, False)]
    by_fold = [pairs.reshape(2, folds, per_fold) for pairs in drawn]
    left, right = torch.cat(by_fold, dim=2).flatten(1)  # fold by fold
    return PairSet(
        images,
        left=left.numpy(),
        right=right.numpy(),
        same=(images.labels[left] == images.labels[right]).numpy(),
        fold=np.repeat(np.arange(folds), 2 * per_fold),
    )


def draw_listed(labels: Tensor, same: bool, count: int, generator: torch.Generator) -> Tensor:
    """Random pairs ``[2, count]`` of one kind, from the list of all."""
    first, second = torch.triu_indices(len(labels), len(labels), 1)
    of_kind = ((labels[first] == labels[second]) == same).nonzero().flatten()
    chosen = of_kind[torch.randperm(len(of_kind), generator=generator)[:count]]
    return torch.stack([first[chosen], second[chosen]])


def draw_unlisted(labels: Tensor, same: bool, count: int, generator: torch.Generator) -> Tensor:
    """The same for more images than allow a list: drawn, and drawn again if drawn before."""
    order = labels.argsort(stable=True)  # person by person
    sizes = labels.bincount()
    starts = sizes.cumsum(0) - sizes
    weights = (sizes * (sizes - 1)).double()
    found: dict[tuple[int, int], None] = {}
    while len(found) < count:
        if same:
            people = torch.multinomial(weights, count, replacement=True, generator=generator)
            n = sizes[people]
            one, step = (torch.rand(2, count, generator=generator, dtype=torch.float64)).unbind()
            i = (one * n).long()
            j = (i + 1 + (step * (n - 1)).long()) % n  # another than i
            ends = order[starts[people] + torch.stack([i, j])]
        else:
            ends = torch.randint(len(labels), (2, count), generator=generator)
            ends = ends[:, labels[ends[0]] != labels[ends[1]]]
        for pair in ends.sort(dim=0).values.T.tolist():
            found.setdefault((pair[0], pair[1]))
    return torch.tensor(list(found)[:count]).T
