"""A lock on a folder that goes with the process that holds it."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from mhe_core.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderLock", "Locked"]

TAKEN = {errno.EACCES, errno.EAGAIN}

_held: set[Path] = set()  # the system's locks are a process's, and never refused to itself


class Locked(UserError):
    """Another process, or another run of this one, holds the lock."""


class FolderLock:
    """An advisory lock on a folder, by a file in it.

    The system holds it for this process and for no child of it, and ends it with the process,
    however that ends. Where the file system has no locks, this is said, and nothing is locked.

    Args:
        folder: has to exist when the lock is acquired.
        name: of the file; locks of other names do not know of each other.
    """

    def __init__(self, folder: Path, name: str = ".lock") -> None:
        self.file = Path(folder) / name
        self._descriptor: int | None = None

    def acquire(self, *, wait: bool = False) -> None:
        """Take the lock, if it is not yet taken by this object.

        Args:
            wait: until another process gives it back, or ends.

        Raises:
            Locked: if somebody else has it; with ``wait`` another run of this process, which
                could not go on.
        """
        if self._descriptor is not None:
            return
        file = self.file.resolve()
        if file in _held:  # opening and closing the file once more would end that lock
            raise Locked(f"{self.file.parent} is in use by this process")
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, wait)
        except OSError as error:
            if error.errno in TAKEN:
                os.close(descriptor)
                raise Locked(f"{self.file.parent} is in use by another process") from None
            message = f"{self.file.parent} cannot be locked ({error}): that two processes write"
            print(f"{message} there would go unnoticed", file=sys.stderr)
        self._descriptor = descriptor
        _held.add(file)

    def release(self) -> None:
        """Give the lock back, if this object has it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            _held.discard(self.file.resolve())
            self._descriptor = None


def _lock(descriptor: int, wait: bool) -> None:
    if fcntl is None:
        raise OSError("this system has no fcntl")
    fcntl.lockf(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
