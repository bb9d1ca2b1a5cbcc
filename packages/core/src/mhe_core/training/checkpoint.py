"""Checkpoints: tensors and plain values in one file, replaced atomically."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, Any

import torch

from mhe_core.errors import UserError
from mhe_core.training.files import keep_as, replacing

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]

FORMAT = "mhe-checkpoint-1"


class CheckpointError(UserError):
    """A checkpoint that is truncated, foreign, or does not fit; nothing was loaded."""


def save_checkpoint(file: Path, content: dict[str, Any], keep_previous: bool = False) -> None:
    """Write a checkpoint under a temporary name, then rename it to ``file``.

    Args:
        file: where to; a process killed at any moment leaves the old file or the new one.
        content: tensors and plain values, nested in dicts and lists.
        keep_previous: keep the file that is replaced as ``previous`` beside it.

    Raises:
        OSError: if it cannot be written, say because the disk is full; the old file stands.
    """
    with replacing(file, "wb") as stream:
        _save({"format": FORMAT, **content}, stream)
        stream.flush()  # a full disk is found before anything is replaced
        if keep_previous and file.exists():
            keep_as(file, file.with_name("previous"))


def _save(content: dict[str, Any], stream: IO[bytes]) -> None:
    """torch.save, which hides what the stream raises behind an error of its own."""
    refused: list[OSError] = []

    class Remembering:
        def write(self, data: bytes) -> int:
            try:
                return stream.write(data)
            except OSError as error:
                refused.append(error)
                raise

        def flush(self) -> None:
            stream.flush()

    try:
        torch.save(content, Remembering())  # type: ignore[arg-type]
    except RuntimeError:
        if refused:
            raise refused[0] from None
        raise


def weights_digest(source: Path | str | None) -> str:
    """What tells weights apart, wherever they are: of a file, or of a run's best checkpoint.

    What is neither, such as a network's name, stands for itself.
    """
    file = Path(source or "")
    if file.is_dir():
        file = file / "checkpoints" / "best"
    if source is None or not file.is_file():
        return str(source)
    known = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            known.update(block)
    return known.hexdigest()


def load_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint, onto the CPU, without running any code from it.

    Raises:
        FileNotFoundError: if there is none.
        CheckpointError: if the file is truncated or is not a checkpoint of this project.
    """
    file = Path(file)
    if not file.exists():
        raise FileNotFoundError(f"expected a checkpoint at {file}, found none")
    hint = ""
    previous = file.with_name("previous")
    if file.name == "last" and previous.exists():
        hint = f"; the one before it is {previous}: rename it to {file.name} to continue from there"
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        raise CheckpointError(f"{file} is truncated or not a checkpoint ({error}){hint}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"expected {file} to be a checkpoint of format {FORMAT}{hint}")
    return content
