"""Every image of a folder is read to its end before training starts, and not again while it stays.

Headers do not show that a file is truncated, so each is decoded. Sets that fit into memory are
decoded at each start anyway; of larger ones a list of what was checked is kept in the user's cache
folder, with each file's size and time of change, so that only what is new or changed is decoded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from mhe_core.training.files import write_atomically
from mhe_core.training.images.folders import printable
from mhe_core.training.images.reading import (
    DataError,
    ImageFile,
    Size,
    image_size,
    opened,
    read_image,
)

__all__ = ["check_files", "check_size", "for_each"]

logger = logging.getLogger(__name__)

Checked = tuple[int, int, int, int]  # bytes, time of change, height, width

NAMED = 10  # damaged files named in one message
CHUNK = 4096  # images between two writes of the list


def for_each(
    act: Callable[[int], object], count: int, after_chunk: Callable[[], object] | None = None
) -> None:
    """Call ``act`` with 0, …, count − 1, in several threads, and go on where it fails.

    Args:
        act: what to do with an image's index; raises a DataError if the image cannot be used.
        count: how many there are.
        after_chunk: what to do now and then, and at the end.

    Raises:
        DataError: after the last image, if any failed; names up to ten of them.
    """
    failed: list[str] = []

    def attempt(index: int) -> None:
        try:
            act(index)
        except DataError as error:
            failed.append(str(error))

    quiet = not sys.stderr.isatty() or count < CHUNK
    with ThreadPoolExecutor() as pool, tqdm(total=count, unit="image", disable=quiet) as bar:
        for start in range(0, count, CHUNK):
            for _ in pool.map(attempt, range(start, min(start + CHUNK, count))):
                bar.update()
            if after_chunk is not None:
                after_chunk()
    if failed:
        more = f"\n… and {len(failed) - NAMED:,} more" if len(failed) > NAMED else ""
        named = "\n".join(sorted(failed)[:NAMED])
        head = f"{len(failed):,} of {count:,} images cannot be used:\n" if len(failed) > 1 else ""
        raise DataError(f"{head}{named}{more}")


def check_size(file: ImageFile, size: Size, expected: Size) -> None:
    """A DataError if an image of ``size`` is not of the ``expected`` one, the first image's."""
    if size != expected:
        raise DataError(
            f"{file} is {size[0]}×{size[1]} pixels, the first image is "
            f"{expected[0]}×{expected[1]}: give the size to which all are resized"
        )


def check_files(root: Path, files: Sequence[Path], expected: Size | None = None) -> None:
    """Read each file to its end, but for those that an earlier call has read and that stayed.

    Args:
        root: the folder; each has a list of its own.
        files: images in it.
        expected: the height and width that all must have; None: any.

    Raises:
        DataError: if any cannot be read or has another size; names up to ten of them.
    """
    journal = journal_of(root)
    checked = _read_journal(journal)
    names = [os.path.relpath(file, root) for file in files]
    stamps = [_stamp(file) for file in files]
    todo = [i for i, name in enumerate(names) if checked.get(name, ())[:2] != stamps[i]]

    def check(number: int) -> None:
        index = todo[number]
        checked[names[index]] = (*stamps[index], *read_to_the_end(files[index]))

    if todo:
        logger.info(
            "%s: reading %s of %s images to their end, once; what is checked is kept in %s",
            *(printable(root), f"{len(todo):,}", f"{len(files):,}", journal),
        )
        for_each(check, len(todo), lambda: _write_journal(journal, checked))
    if expected is not None:
        for_each(lambda i: check_size(files[i], checked[names[i]][2:], expected), len(files))


def read_to_the_end(file: ImageFile) -> Size:
    """Height and width of an image whose pixels are all there.

    A JPEG file's are decoded at an eighth of its size, which reads all of it several times faster.

    Raises:
        DataError: as :func:`read_image`.
    """
    size = image_size(file)
    with opened(file) as image:
        if image.format == "JPEG":
            image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            return size
    read_image(file)
    return size


def journal_of(root: Path) -> Path:
    """The list of a folder's checked images, in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return cache / "mhe" / "checked-images" / f"{name}.json"


def _stamp(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError as error:
        raise DataError(f"cannot read the image {file}: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns


def _read_journal(journal: Path) -> dict[str, Checked]:
    try:
        return {name: tuple(entry) for name, entry in json.loads(journal.read_text()).items()}
    except (OSError, ValueError):  # none yet, or damaged: then all is checked again
        return {}


def _write_journal(journal: Path, checked: dict[str, Checked]) -> None:
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(journal, json.dumps(checked))
    except OSError as error:
        logger.warning("cannot keep the list of checked images: %s", error)
