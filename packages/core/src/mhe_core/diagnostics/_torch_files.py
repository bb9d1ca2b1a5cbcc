"""What torch.save wrote, without running code that may be in it.

torch's own restricted unpickler reads the file. Beside tensors and plain values it is given a fixed
list of harmless names that training programs put into checkpoints: each stands for a function of
this file, not for what the file's author may have meant. TorchScript and tar archives, which some
versions of torch hand to other readers, are refused by their content.
"""

from __future__ import annotations

import argparse
import contextlib
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import torch

__all__ = ["RefusedFileError", "read_torch_file"]

WIDTHS = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "f2": "e", "f4": "f", "f8": "d"}
WIDTHS |= {f"u{size}": WIDTHS[f"i{size}"].upper() for size in (1, 2, 4, 8)}


class RefusedFileError(Exception):
    """The file has what is not read; the message says what."""


def read_torch_file(path: Path, *, mapped: bool = False) -> Any:
    """Content of a file that torch.save wrote.

    Args:
        path: the file.
        mapped: leave tensors on the disk until they are used, where the format allows it.

    Raises:
        RefusedFileError: if it would have to run code, or is TorchScript.
        pickle.UnpicklingError, RuntimeError, EOFError, OSError, …: if it is damaged.
    """
    archive = is_archive(path)
    if archive:
        refuse_torchscript(path)
    elif tarfile.is_tarfile(path):
        raise RefusedFileError("a tar archive of torch before 0.4")
    # Given a path, torch would let the suffix decide. What it warns of is in its errors too.
    with path.open("rb") as file, warnings.catch_warnings(), harmless():
        warnings.simplefilter("ignore")
        mapped = mapped and archive and path.suffix != ".safetensors"
        source: Any = str(path) if mapped else file
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)


def is_archive(path: Path) -> bool:
    """Whether torch takes the file for a zip archive, as it writes since version 1.6."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def refuse_torchscript(path: Path) -> None:
    """Refuse an archive that has what TorchScript's have: constants, or code."""
    try:
        names = zipfile.ZipFile(path).namelist()
    except zipfile.BadZipFile as error:
        raise RuntimeError(f"damaged zip archive: {error}") from error
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise RefusedFileError("TorchScript")


def harmless() -> contextlib.AbstractContextManager[Any]:
    """While it lasts, torch reads the names of the fixed list."""
    if torch.__version__ < "2.6":  # no names of one's own choice before
        return contextlib.nullcontext()
    return torch.serialization.safe_globals([(stand_in, n) for n, stand_in in HARMLESS.items()])


class _Ignored:
    """Stands for an object whose content nobody asks for, such as numpy's arrays."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _DType:
    """A numpy dtype: its code and byte order."""

    def __init__(self, code: str, *flags: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _scalar(dtype: _DType, data: bytes = b"") -> Any:
    """A numpy scalar as Python's number; None where it is another kind."""
    if not isinstance(data, bytes) or dtype.code not in WIDTHS:
        return None
    return struct.unpack(dtype.order + WIDTHS[dtype.code], data)[0]


def _mapping(*default_factory: Any) -> dict[Any, Any]:
    """A defaultdict as a plain one."""
    return {}


PATHS = [f"{pure}{kind}Path" for pure in ("", "Pure") for kind in ("", "Posix", "Windows")]
HARMLESS: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": argparse.Namespace,
    "collections.defaultdict": _mapping,
    **{f"builtins.{kind.__name__}": kind for kind in (list, dict, int, float, str, bool, tuple)},
    **{f"{module}.{kind}": PurePath for module in ("pathlib", "pathlib._local") for kind in PATHS},
    **{
        f"numpy.{core}.multiarray.{name}": stand_in
        for core in ("core", "_core")
        for name, stand_in in (("scalar", _scalar), ("_reconstruct", _Ignored))
    },
    "numpy.dtype": _DType,
    "numpy.ndarray": _Ignored,
}
