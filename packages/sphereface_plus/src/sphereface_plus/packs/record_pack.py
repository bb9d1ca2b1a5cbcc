"""A training set in one file, ``train.rec``, and its index, ``train.idx``.

Record 0 of insightface's face packs is a header, wherever in the file it stands: images have the
keys 1 to a − 1, and the records of people, which hold no image and are not needed, the keys a to
b − 1. Packs without a header hold images alone. A record is a flag, a label, two numbers, as many
further labels as the flag says, and the encoded image.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from mhe_core.training.images import DataError, read_image, to_tensor
from numpy.typing import NDArray
from torch import Tensor

from sphereface_plus.packs.recordio import RecordFile

__all__ = ["PackedImage", "RecordPack"]

FIXED = struct.Struct("<IfQQ")  # flag, label, id, id2
EXACT = 2**24  # up to which every whole number is a float32

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PackedImage:
    """An image of a pack, which opens like a file and is named in messages."""

    pack: RecordPack
    index: int

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The encoded image."""
        return io.BytesIO(self.pack.encoded(self.index))

    def __str__(self) -> str:
        return f"{self.pack.file}, record {self.pack.keys[self.index]}"


@dataclass(frozen=True)
class _Heads:
    """What stands before the image in each record ``[N]``; ``empty``: where there is no image."""

    flag: Ints
    first: NDArray[np.float32]
    empty: NDArray[np.bool_]


class RecordPack(Sequence[PackedImage]):
    """The images of ``train.rec`` in the order of their keys, each read when it is asked for.

    Everything but the images is checked here: the index against the records, the records' framing,
    the labels. Only the first of a record's labels is its class, as in the published readers.

    Args:
        file_or_folder: ``train.rec``, with its index ``train.idx`` beside it, or their folder.
            Without an index the file is searched through, and its order taken for the keys'.

    Attributes:
        file: the ``.rec`` file.
        keys: key of each image, int64 ``[N]``, rising.
        labels: label of each image as it is in the file, int64 ``[N]``; not always from 0 on.
        classes: the names of the labels that occur, in rising order.
        remarks: what was left out or taken for granted, for the user to read.

    Raises:
        FileNotFoundError: if there is no such pack.
        DataError: a ValueError, if it is damaged, has no image, or a label that is no class.

    Example:
        >>> pack = RecordPack("faces_webface_112x112")  # doctest: +SKIP
        >>> len(pack), len(pack.classes), pack.image(0).shape  # doctest: +SKIP
        (490623, 10572, torch.Size([3, 112, 112]))
    """

    def __init__(self, file_or_folder: str | Path) -> None:
        self.file = find_pack(Path(file_or_folder))
        self._records = RecordFile(self.file)
        self.remarks: list[str] = []
        index = self.file.with_suffix(".idx")
        if index.is_file():
            keys, offsets = read_index(index)
        else:
            offsets = self._records.offsets()
            keys = np.arange(len(offsets))
            self.remarks.append(f"{index.name} is missing: the order in the file is the images'")
        heads = self._heads(offsets)
        images = self._images(keys, heads, indexed=index.is_file())
        order = images[np.argsort(keys[images], kind="stable")]
        self.keys, self._offsets = keys[order], offsets[order]
        self.labels = self._labels(self.keys, heads.first[order])
        self.classes = tuple(str(label) for label in self.labels.unique().tolist())
        if extra := int((heads.flag[order] > 1).sum()):
            self.remarks.append(f"{extra} images have several labels: the first is the person's")
        if index.is_file():
            self._compare_sizes(offsets)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> PackedImage:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {index}")
        return PackedImage(self, index % len(self))

    def encoded(self, index: int) -> bytes:
        """Image ``index`` as it is in the pack: the bytes of a JPEG or PNG file."""
        record = self._records.record(int(self._offsets[index]))
        (flag,) = struct.unpack_from("<I", record)
        return record[FIXED.size + 4 * flag :]

    def image(self, index: int) -> Tensor:
        """Image ``index`` as RGB, uint8 ``[3, height, width]``.

        Raises:
            DataError: if it cannot be decoded; names the record.
        """
        return to_tensor(read_image(self[index]))

    def _heads(self, offsets: Ints) -> _Heads:
        chunks = self._records.first_chunks(offsets)
        words = self._records.words()

        def word(number: int) -> NDArray[np.uint32]:
            return words[np.minimum(chunks.word + number, len(words) - 1)]

        flag = word(0).astype(np.int64)
        label_at = np.where(flag > 0, FIXED.size // 4, 1)
        bits = words[np.minimum(chunks.word + label_at, len(words) - 1)]
        before_image = FIXED.size + 4 * flag
        length = chunks.length.copy()
        # The few records of several chunks are read whole: their heads may be cut, too.
        for i in np.flatnonzero(chunks.flag):
            record = self._records.record(int(offsets[i]))
            length[i] = len(record)
            if length[i] >= FIXED.size:
                flag[i] = struct.unpack_from("<I", record)[0]
                before_image[i] = FIXED.size + 4 * flag[i]
                place = FIXED.size if flag[i] else 4
                if length[i] >= place + 4:
                    bits[i] = struct.unpack_from("<I", record, place)[0]
        short = length < np.maximum(before_image, FIXED.size)
        if short.any():
            raise DataError(
                f"{self.file}: expected a label and an image in the record at byte "
                f"{offsets[short.argmax()]}, got {length[short.argmax()]} bytes"
            )
        return _Heads(flag, bits.view(np.float32), length == before_image)

    def _images(self, keys: Ints, heads: _Heads, indexed: bool) -> Ints:
        """Which of the records are images; checked against the header, where there is one."""
        images = np.flatnonzero(~heads.empty)
        if not len(images):
            raise DataError(f"expected images in {self.file}, found none in {len(keys)} records")
        header = np.flatnonzero((keys == 0) & heads.empty & (heads.flag > 0))
        if not indexed:
            return images
        if not len(header):
            if heads.empty.any():
                key = keys[heads.empty.argmax()]
                raise DataError(f"{self.file}: expected an image in record {key}, found none")
            return images
        end = heads.first[header[0]]
        if not (end >= 1 and float(end).is_integer()):
            raise DataError(f"{self.file}: expected the header to count images, got {end}")
        if end >= EXACT:  # rounded in the file
            self.remarks.append("the header's count of images is rounded: it was not checked")
            return images
        should_be = (keys > 0) & (keys < end)
        if (wrong := should_be & heads.empty).any():
            raise DataError(
                f"{self.file}: expected an image in record {keys[wrong.argmax()]}, found none"
            )
        if (lost := int(end) - 1 - int(should_be.sum())) > 0:
            raise DataError(
                f"{self.file.with_suffix('.idx')}: expected the {int(end) - 1} images that the "
                f"header counts, {lost} of them are missing"
            )
        if (extra := int((~should_be & ~heads.empty).sum())) > 0:
            self.remarks.append(f"{extra} images beyond those that the header counts: left out")
        return np.flatnonzero(should_be)

    def _labels(self, keys: Ints, labels: NDArray[np.float32]) -> Tensor:
        wrong = ~np.isfinite(labels) | (labels < 0) | (labels != np.trunc(labels))
        if wrong.any():
            place = wrong.argmax()
            raise DataError(
                f"{self.file}: expected a whole number ≥ 0 as the label of record {keys[place]}, "
                f"got {labels[place]}"
            )
        if labels.max() > EXACT:
            self.remarks.append(
                f"labels above {EXACT} are rounded by the format, unless their pack's writer "
                "kept to those that it holds exactly"
            )
        return torch.from_numpy(labels.astype(np.int64))

    def _compare_sizes(self, offsets: Ints) -> None:
        """Say so where the file holds more than the index names."""
        last = int(offsets.max())
        rest = len(self._records) - self._records.end(last)
        if rest:
            self.remarks.append(f"the last {rest} bytes of {self.file.name} are not in the index")


def find_pack(path: Path) -> Path:
    """The ``.rec`` file: the given one, or that of a folder, ``train.rec`` if it has several.

    Raises:
        FileNotFoundError: if there is none.
        DataError: if there are several, none of them ``train.rec``.
    """
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"expected a pack at {path}, found none")
        return path
    if (path / "train.rec").is_file():
        return path / "train.rec"
    found = sorted(file for file in path.glob("*.rec") if not file.name.startswith("."))
    if not found:
        raise FileNotFoundError(f"expected a pack such as train.rec in {path}, found none")
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(f"expected one pack in {path}, found {names}: name one of them")
    return found[0]


def read_index(file: Path) -> tuple[Ints, Ints]:
    """Keys and offsets ``[N]`` of an index file: a line is a key, a tab and an offset.

    Raises:
        DataError: for a malformed line, whose number is named, or a key that occurs twice.
    """
    content = file.read_bytes()
    try:
        numbers = np.array(content.split(), dtype=np.int64)
        whole = len(numbers) == 2 * len(content.splitlines())
    except (ValueError, OverflowError):
        whole = False
    if not whole or not len(numbers):
        raise DataError(malformed_line(file, content))
    keys, offsets = numbers.reshape(-1, 2).T
    if (repeated := len(keys) - len(np.unique(keys))) > 0:
        raise DataError(f"{file}: expected every key once, {repeated} occur again")
    return keys, offsets


def malformed_line(file: Path, content: bytes) -> str:
    """What is wrong with an index that could not be read."""
    for number, line in enumerate(content.splitlines(), 1):
        parts = line.split()
        if len(parts) != 2 or not all(part.isdigit() for part in parts):
            return f"{file}:{number}: expected a key and an offset, got {line[:80]!r}"
    return f"{file}: expected a key and an offset a line, got an empty file"
