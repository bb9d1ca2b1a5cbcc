"""Checkpoints: tensors and plain values in one file, replaced atomically."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]

FORMAT = "mhe-checkpoint-1"


class CheckpointError(ValueError):
    """A checkpoint that is truncated, foreign, or does not fit; nothing was loaded."""


def save_checkpoint(file: Path, content: dict[str, Any], keep_previous: bool = False) -> None:
    """Write a checkpoint under a temporary name, then rename it to ``file``.

    Args:
        file: where to; a process killed at any moment leaves the old file or the new one.
        content: tensors and plain values, nested in dicts and lists.
        keep_previous: keep the file that is replaced as ``previous`` beside it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.writing")
    with temporary.open("wb") as stream:
        torch.save({"format": FORMAT, **content}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    if keep_previous and file.exists():
        link = file.with_name(".previous.writing")
        link.unlink(missing_ok=True)
        os.link(file, link)
        os.replace(link, file.with_name("previous"))
    os.replace(temporary, file)


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
