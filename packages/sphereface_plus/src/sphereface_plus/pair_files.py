"""Files that say which images are pairs: the formats of LFW, CFP, AgeDB, CALFW and CPLFW."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from mhe_core.training.images import SUFFIXES, DataError
from numpy.typing import ArrayLike, NDArray

from sphereface_plus.textfile import read_lines

__all__ = ["Pair", "folds_in_order", "read_pairs"]

logger = logging.getLogger(__name__)

FOLDS = 10
SAME = {"1": True, "0": False, "-1": False}


@dataclass(frozen=True)
class Pair:
    """Two images by their paths below the images' folder, which may lack the suffix.

    Attributes:
        first: such as ``Ann_Lee/Ann_Lee_0001`` or ``001/frontal/01.jpg``.
        second: the other image's.
        same: whether they are one person.
        fold: the pair's fold, from 0.
    """

    first: str
    second: str
    same: bool
    fold: int


def read_pairs(file: Path) -> list[Pair]:
    """The pairs of a file, or of a folder of CFP's.

    - LFW's: the numbers of folds and of pairs, then, fold by fold, lines ``name i j`` of one
      person and as many ``name i other j`` of two. Also its form of one fold, whose first line is
      the number of pairs alone.
    - CALFW's and CPLFW's: a line ``image label`` for each image, two lines a pair, 0 for two
      persons.
    - AgeDB's and others': lines ``image image label`` or ``label image image``, with a label of 1
      for one person, 0 or −1 for two.
    - CFP's: a folder ``Protocol/Split/FP`` (or ``FF``) with ``01/same.txt``, ``01/diff.txt``, ….

    Columns stand apart by tabs, commas or spaces. Pairs without folds are put into ten, in their
    order, same and different ones apart; this is logged.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: for a malformed line; the message has its number.
    """
    file = Path(file)
    if file.is_dir():
        return read_cfp(file)
    if not file.is_file():
        raise FileNotFoundError(f"expected a file of pairs at {file}, found none")
    lines = read_lines(file)
    header = columns(lines[0])
    if 1 <= len(header) <= 2 and all(is_number(part) for part in header):
        return read_lfw(file, lines, [int(part) for part in header])
    if len(header) == 2 and Path(header[0]).suffix.lower() in SUFFIXES:
        return with_folds(file, read_two_lines(file, lines))
    if len(header) == 3:
        return with_folds(file, [one_line(line, f"{file}:{n}") for n, line in enumerate(lines, 1)])
    raise DataError(
        f"{file}:1: expected the numbers of folds and of pairs, or images and a label, "
        f"got {lines[0]!r:.80}"
    )


def columns(line: str) -> list[str]:
    """What stands apart in a line."""
    for separator in ("\t", ","):
        if separator in line:
            return [part.strip() for part in line.split(separator)]
    return line.split()


def is_number(text: str) -> bool:
    """Whether it is a whole number above 0."""
    return text.isascii() and text.isdecimal() and int(text) > 0


def read_lfw(file: Path, lines: Sequence[str], header: Sequence[int]) -> list[Pair]:
    """LFW's format, given the numbers of its first line."""
    folds, per_fold = (1, *header) if len(header) == 1 else header
    if len(lines) - 1 != 2 * folds * per_fold:
        raise DataError(
            f"{file}:{len(lines)}: expected {folds} folds of {per_fold} same and {per_fold} "
            f"different pairs, {2 * folds * per_fold} lines after the first, got {len(lines) - 1}"
        )
    pairs = []
    for number, line in enumerate(lines[1:]):
        fold, place = divmod(number, 2 * per_fold)
        pairs.append(lfw_line(line, place < per_fold, fold, f"{file}:{number + 2}"))
    return pairs if len(header) == 2 else with_folds(file, pairs)


def lfw_line(line: str, same: bool, fold: int, where: str) -> Pair:
    """One line of the file; a DataError that begins with ``where`` if it is malformed."""
    parts = columns(line)
    expected = "name, number, number" if same else "name, number, other name, number"
    if len(parts) != (3 if same else 4):
        raise DataError(f"{where}: expected {expected}, got {line!r}")
    numbers = (parts[1], parts[2] if same else parts[3])
    if not all(part.isdecimal() for part in numbers):
        raise DataError(f"{where}: expected {expected}, with whole numbers, got {line!r}")
    other = parts[0] if same else parts[2]
    if not same and other == parts[0]:
        raise DataError(f"{where}: expected two different persons, got {line!r}")
    first, second = (
        f"{name}/{name}_{int(number):04d}"
        for name, number in zip((parts[0], other), numbers, strict=True)
    )
    return Pair(first, second, same, fold)


def read_two_lines(file: Path, lines: Sequence[str]) -> list[Pair]:
    """CALFW's and CPLFW's format: an image and a label a line, two lines a pair."""
    if len(lines) % 2:
        raise DataError(f"{file}:{len(lines)}: expected two lines a pair, got {len(lines)} lines")
    pairs = []
    for n in range(0, len(lines), 2):
        (first, label), (second, again) = (
            image_and_label(lines[n + i], f"{file}:{n + i + 1}") for i in (0, 1)
        )
        if label != again:
            raise DataError(f"{file}:{n + 2}: expected label {label} in both lines, got {again}")
        pairs.append(Pair(first, second, label > 0, 0))
    return pairs


def image_and_label(line: str, where: str) -> tuple[str, int]:
    """One line of CALFW's format."""
    parts = columns(line)
    if len(parts) != 2 or not parts[1].lstrip("-").isdecimal():
        raise DataError(f"{where}: expected an image and a label, got {line!r:.80}")
    return parts[0], int(parts[1])


def one_line(line: str, where: str) -> Pair:
    """A pair in one line: two images, and a label before or after them."""
    parts = columns(line)
    if len(parts) == 3:
        for label, images in ((parts[2], parts[:2]), (parts[0], parts[1:])):
            if label in SAME:
                return Pair(images[0], images[1], SAME[label], 0)
    raise DataError(f"{where}: expected two images and a label of 1 or 0, got {line!r:.80}")


def read_cfp(folder: Path) -> list[Pair]:
    """CFP's folder of folds, each of pairs of numbers that its lists name: ``FP`` or ``FF``."""
    kind = folder.name.upper()
    if kind not in ("FP", "FF"):
        raise DataError(f"expected CFP's Protocol/Split/FP or …/FF as a folder, got {folder}")
    folds = sorted(path for path in folder.iterdir() if path.is_dir())
    if not folds:
        raise DataError(f"expected folders 01, 02, … in {folder}, found none")
    lists = [cfp_list(folder.parents[1] / f"Pair_list_{letter}.txt") for letter in kind]
    pairs = []
    for fold, path in enumerate(folds):
        for file, same in ((path / "same.txt", True), (path / "diff.txt", False)):
            for n, line in enumerate(read_lines(file), 1):
                images = [
                    names.get(part) for part, names in zip(columns(line), lists, strict=False)
                ]
                if len(columns(line)) != 2 or None in images:
                    raise DataError(
                        f"{file}:{n}: expected two numbers of CFP's lists, got {line!r:.80}"
                    )
                pairs.append(Pair(str(images[0]), str(images[1]), same, fold))
    return pairs


def cfp_list(file: Path) -> dict[str, str]:
    """Image by number; their paths are taken from the person's folder on, 001/frontal/01.jpg."""
    images = {}
    for n, line in enumerate(read_lines(file), 1):
        parts = columns(line)
        if len(parts) != 2 or not parts[0].isdecimal():
            raise DataError(f"{file}:{n}: expected a number and an image, got {line!r:.80}")
        images[parts[0]] = "/".join(PurePosixPath(parts[1].replace("\\", "/")).parts[-3:])
    return images


def with_folds(file: Path, pairs: list[Pair]) -> list[Pair]:
    """The pairs of a file that has no folds, in folds."""
    folds = folds_in_order([pair.same for pair in pairs])
    logger.info(
        "%s has no folds: its pairs are put into %d, in their order, same and different ones apart",
        *(file, folds.max() + 1),
    )
    return [
        Pair(pair.first, pair.second, pair.same, int(fold))
        for pair, fold in zip(pairs, folds, strict=True)
    ]


def folds_in_order(same: ArrayLike, folds: int = FOLDS) -> NDArray[np.int64]:
    """A fold for each pair ``[P]``: the same pairs in ``folds`` runs, and the different ones, too.

    There are fewer folds where there are fewer pairs of either kind.
    """
    is_same = np.asarray(same, dtype=bool)
    counts = [int((is_same == kind).sum()) for kind in (True, False)]
    folds = max(1, min(folds, *counts))
    found = np.zeros(len(is_same), dtype=np.int64)
    for kind, count in zip((True, False), counts, strict=True):
        found[is_same == kind] = np.arange(count) * folds // max(1, count)
    return found
