"""Every image of a large pack is read to its end before training starts, and once only."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from mhe_core.training.files import write_atomically
from mhe_core.training.images import Size, check_size, for_each, read_to_the_end
from mhe_core.training.images.checking import journal_of

from sphereface_plus.packs.record_pack import RecordPack

__all__ = ["check_pack"]

logger = logging.getLogger(__name__)


def check_pack(pack: RecordPack, expected: Size | None = None) -> None:
    """Read each image to its end, unless an earlier call has read them and the file stayed.

    That it was read, its size and its time of change are kept in the user's cache folder.

    Args:
        pack: the pack.
        expected: the height and width that all must have; None: any.

    Raises:
        DataError: if any cannot be read or has another size; names up to ten of them.
    """
    journal = journal_of(pack.file)
    found = pack.file.stat()
    stamp = [found.st_size, found.st_mtime_ns]
    sizes = _read(journal, stamp)
    if sizes is None:
        logger.info("%s: reading %s images to their end, once", pack.file, f"{len(pack):,}")
        seen: dict[Size, int] = {}  # with the first image of each size

        def check(index: int) -> None:
            seen.setdefault(read_to_the_end(pack[index]), index)

        for_each(check, len(pack))
        sizes = seen
        _write(journal, {"stamp": stamp, "sizes": [[*size, i] for size, i in sizes.items()]})
    if expected is not None:
        for size, index in sizes.items():
            check_size(pack[index], size, expected)


def _read(journal: Path, stamp: list[int]) -> dict[Size, int] | None:
    """The sizes that an earlier call found, with an image of each."""
    try:
        content = json.loads(journal.read_text())
        if content["stamp"] != stamp:
            return None
        return {(height, width): index for height, width, index in content["sizes"]}
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged
        return None


def _write(journal: Path, content: dict[str, object]) -> None:
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(journal, json.dumps(content))
    except OSError as error:
        logger.warning("cannot keep that the pack was checked: %s", error)
