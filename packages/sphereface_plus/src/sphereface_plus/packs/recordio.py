"""RecordIO, the framing of mxnet's packs: records of any bytes, one after the other in a file.

A record is one chunk, or several: a magic number, a word, the chunk's bytes, zeros up to a multiple
of 4; all numbers little-endian. The word's upper 3 bits say which chunk it is: 0 the only one, 1
the first, 2 one between, 3 the last; its lower 29 bits are the chunk's length. A writer cuts a
record wherever the magic number stands in it at a multiple of 4, and leaves those 4 bytes out.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mhe_core.training.images import DataError
from numpy.typing import NDArray

__all__ = ["FirstChunks", "RecordFile"]

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
HEAD = struct.Struct("<II")  # the magic number and the word
WHOLE, FIRST, MIDDLE, LAST = range(4)

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class FirstChunks:
    """The first chunk of several records ``[N]``: its flag, its length, where the file has it."""

    flag: Ints
    length: Ints
    word: Ints  # number of the 32-bit word with which its bytes begin


class RecordFile:
    """A RecordIO file, mapped into memory: any record at the cost of reading that record.

    Processes can share it: it is opened anew where it is unpickled.

    Args:
        file: the file.

    Raises:
        FileNotFoundError: if there is none.
        DataError: if it is empty.
    """

    def __init__(self, file: Path) -> None:
        self.file = Path(file)
        if not self.file.is_file():
            raise FileNotFoundError(f"expected a file of records at {self.file}, found none")
        self._open()

    def _open(self) -> None:
        if not self.file.stat().st_size:
            raise DataError(f"expected records in {self.file}, got an empty file")
        with self.file.open("rb") as stream:
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.file = state["file"]
        self._open()

    def __len__(self) -> int:
        """Bytes of the file."""
        return len(self._bytes)

    def record(self, offset: int) -> bytes:
        """The record whose first chunk begins at ``offset``.

        Raises:
            DataError: if none begins there, or the file ends before the record does.
        """
        return self._read(offset)[0]

    def end(self, offset: int) -> int:
        """Where the record that begins at ``offset`` ends, its padding included."""
        return self._read(offset)[1]

    def offsets(self) -> Ints:
        """Where each record of the file begins, found by going through it from its start."""
        found = []
        offset = 0
        while offset < len(self):
            found.append(offset)
            offset = self.end(offset)
        return np.array(found, dtype=np.int64)

    def words(self) -> NDArray[np.uint32]:
        """The whole file as 32-bit words."""
        return np.frombuffer(self._bytes, dtype="<u4", count=len(self) // 4)

    def first_chunks(self, offsets: Ints) -> FirstChunks:
        """The first chunks of the records at ``offsets`` [N].

        Raises:
            DataError: if no record begins at one of them, or the file ends before the chunk does.
        """
        outside = (offsets < 0) | (offsets % 4 != 0) | (offsets + HEAD.size > len(self))
        if outside.any():
            self._fail(int(offsets[outside.argmax()]), "no record begins there")
        words, start = self.words(), offsets // 4
        wrong = words[start] != MAGIC
        if wrong.any():
            self._fail(int(offsets[wrong.argmax()]), "no record begins there")
        word = words[start + 1].astype(np.int64)
        flag, length = word >> 29, word & (1 << 29) - 1
        wrong = (flag != WHOLE) & (flag != FIRST)
        if wrong.any():
            self._fail(int(offsets[wrong.argmax()]), "a record goes on there, it does not begin")
        short = offsets + HEAD.size + length > len(self)
        if short.any():
            self._fail(int(offsets[short.argmax()]), "the file ends before the record does")
        return FirstChunks(flag, length, start + 2)

    def _read(self, offset: int) -> tuple[bytes, int]:
        flag, chunk, offset = self._chunk(begins := offset, offset)
        if flag == WHOLE:
            return chunk, offset
        if flag != FIRST:
            self._fail(begins, "a record goes on there, it does not begin")
        chunks = [chunk]
        while flag != LAST:
            if offset == len(self):
                self._fail(begins, "the file ends before the record does, its last chunk missing")
            flag, chunk, offset = self._chunk(begins, offset)
            if flag not in (MIDDLE, LAST):
                self._fail(begins, "another record begins before its last chunk")
            chunks.append(chunk)
        return MAGIC_BYTES.join(chunks), offset

    def _chunk(self, begins: int, offset: int) -> tuple[int, bytes, int]:
        """Flag and bytes of the chunk at ``offset``, and where the next one begins."""
        start = offset + HEAD.size
        if offset < 0 or start > len(self):
            self._fail(begins, "the file ends before the record does")
        magic, word = HEAD.unpack_from(self._bytes, offset)
        if magic != MAGIC:
            self._fail(begins, f"expected the magic number {MAGIC:#x} at {offset}, got {magic:#x}")
        end = start + (word & (1 << 29) - 1)
        padded = end + -end % 4
        if padded > len(self):
            self._fail(begins, "the file ends before the record does")
        return word >> 29, self._bytes[start:end], padded

    def _fail(self, offset: int, why: str) -> None:
        raise DataError(f"{self.file} is damaged: record at byte {offset}: {why}")
