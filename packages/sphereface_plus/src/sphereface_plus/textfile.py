"""Lines of a text file, as Windows, macOS and Linux write them."""

from __future__ import annotations

import codecs
from pathlib import Path

from mhe_core.training.images import DataError

__all__ = ["read_lines"]

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_lines(file: Path) -> list[str]:
    """The lines of a file in UTF-8 or UTF-16, with any ends of line, without empty ones at its end.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if it is empty or no text; names the file.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"expected a text file at {file}, found none")
    content = file.read_bytes()
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"expected text in UTF-8 or UTF-16 in {file}: {error.reason}") from error
    if "\0" in text:
        raise DataError(f"expected text in UTF-8 or UTF-16 in {file}, got a binary file")
    lines = text.rstrip().splitlines()
    if not lines:
        raise DataError(f"{file}:1: expected text, got an empty file")
    return lines
