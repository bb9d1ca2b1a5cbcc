"""Files that are whole or not there, on file systems that lack a call or two."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = ["keep_as", "replacing", "write_atomically"]

# Of os.fsync: the data is lost. Any other error says that this file system does not have the call.
LOST = {errno.EIO, errno.ENOSPC, errno.EDQUOT}


@contextmanager
def replacing(file: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A stream under a temporary name, renamed to ``file`` at the end of the block.

    A process killed at any moment leaves the old file or the new one, and an exception the old
    one. The folder is made.

    Args:
        file: the file to write or to replace.
        mode: ``"w"`` or ``"wb"``.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.writing")
    try:
        with temporary.open(mode) as stream:
            yield stream
            stream.flush()
            _sync(stream.fileno())
        os.replace(temporary, file)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(file)  # which the system does not say of writes
        raise


def write_atomically(file: Path, text: str) -> None:
    """Write a text file; a reader never sees half of it."""
    with replacing(file) as stream:
        stream.write(text)


def keep_as(file: Path, other: Path) -> None:
    """Give a file a second name, which replaces what had it; a copy where there are no links."""
    temporary = other.with_name(f".{other.name}.writing")
    temporary.unlink(missing_ok=True)
    try:
        os.link(file, temporary)
    except (OSError, NotImplementedError):  # mounted drives, SMB, exFAT
        with file.open("rb") as source, replacing(other, "wb") as stream:
            shutil.copyfileobj(source, stream, 2**20)
    else:
        os.replace(temporary, other)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in LOST:
            raise
