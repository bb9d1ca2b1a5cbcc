"""Weights from a file, without running code that may be in it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mhe_core.diagnostics._torch_files import RefusedFileError, read_torch_file

__all__ = ["WeightsFileError", "load_state_dict"]

# What training programs call the network's state dict in a checkpoint, best first.
USUAL_KEYS = ("model", "state_dict", "model_state_dict", "net", "network", "module")


class WeightsFileError(ValueError):
    """The file cannot be read as weights; the message says why."""


def load_state_dict(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """The state dict in a weights file: safetensors, or written by ``torch.save``.

    The content decides, not the suffix. Only tensors and plain values are read; a file that would
    have to run code to be read (pickled modules, TorchScript) is refused.

    Args:
        path: the file.
        key: where in a nested checkpoint the state dict is, with dots between levels. By default
            the only one there is, or the one under a usual key such as ``model``.

    Returns:
        Tensors on the CPU by name.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsFileError: (a ValueError) if the file is neither, is damaged, is refused, or if it
            does not tell which of several state dicts is meant.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"expected a weights file, found no {path}")
    if path.is_dir():
        raise WeightsFileError(f"expected a weights file, got the folder {path}")
    content = read_safetensors(path) if is_safetensors(path) else read_pickled(path)
    return find_state_dict(content, key, path)


def is_safetensors(path: Path) -> bool:
    """Whether the file starts like safetensors: the length of a header, then a JSON object."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length <= path.stat().st_size - 8


def read_safetensors(path: Path) -> Any:
    """Content of a safetensors file."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise WeightsFileError(
            f"reading {path} needs safetensors: pip install 'mhe-core[safetensors]'"
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsFileError(f"{path} is a damaged safetensors file: {error}") from error


def read_pickled(path: Path) -> Any:
    """Content of what ``torch.save`` wrote, of tensors and plain values only."""
    try:
        return read_torch_file(path)
    except RefusedFileError as error:
        raise WeightsFileError(f"refused to read {path}: it is {error}") from error
    except pickle.UnpicklingError as error:
        if not starts_like_torch_save(path):
            raise WeightsFileError(
                f"expected safetensors or a file written by torch.save, got something else: {path}"
            ) from error
        raise WeightsFileError(
            f"refused to read {path}: it has more than tensors and plain values, and reading "
            f"that would run code of the file's author ({reason(error)}); save a state dict instead"
        ) from error
    except Exception as error:  # a damaged file can make torch raise whatever it likes
        raise WeightsFileError(
            f"expected safetensors or a file written by torch.save, cannot read {path}: "
            f"{reason(error)}"
        ) from error


def starts_like_torch_save(path: Path) -> bool:
    """Whether the file is a zip archive or starts like a pickle."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(path) or file.read(1) == b"\x80"


def reason(error: Exception) -> str:
    """The line of torch's message that says what it met."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    met = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    first = (met or lines or [type(error).__name__])[0]
    return first.removeprefix("WeightsUnpickler error: ").split(" was not an allowed")[0]


def find_state_dict(content: Any, key: str | None, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors that is meant."""
    candidates = dict(state_dicts(content))
    if key is not None:
        if key not in candidates:
            raise WeightsFileError(f"expected key to be one of {names(candidates)}, got {key!r}")
        return candidates[key]
    if len(candidates) == 1 or "" in candidates:
        return candidates.get("") or next(iter(candidates.values()))
    for usual in USUAL_KEYS:
        matches = [name for name in candidates if name.split(".")[-1] == usual]
        if len(matches) == 1:
            return candidates[matches[0]]
    if not candidates:
        raise WeightsFileError(
            f"expected a state dict, found no weights of two dimensions in {path}"
        )
    raise WeightsFileError(
        f"expected one state dict, found {len(candidates)} in {path}: "
        f"pick one with key, one of {names(candidates)}"
    )


def state_dicts(content: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Mappings that have tensors of two or more dimensions, by where they are.

    Keys that are not strings are not followed: an optimizer's state has numbers.
    """
    if not isinstance(content, Mapping):
        return
    tensors = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if any(tensor.ndim >= 2 for tensor in tensors.values()):
        yield prefix, tensors
        return
    for key, value in content.items():
        if isinstance(key, str):
            yield from state_dicts(value, f"{prefix}.{key}".lstrip("."))


def names(candidates: Mapping[str, Any]) -> list[str]:
    """For messages."""
    return sorted(candidates)
