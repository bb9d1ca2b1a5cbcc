"""Pairs of faces in one file, ``lfw.bin`` and its like: a pickle of encoded images and booleans.

A pickle can run any program, so this one is read by an unpickler that knows nothing but lists,
bytes, numbers and the few names under which numpy and Python 2 write bytes; and even these stand
for functions of this file, so that none of numpy's own code meets the file's content.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from mhe_core.training.images import DataError, image_size

__all__ = ["EncodedImage", "read_verification_pack"]

DTYPES = {"u1": np.uint8, "b1": np.bool_}


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file, which open like one and are named in messages."""

    name: str
    data: bytes

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The encoded image."""
        return io.BytesIO(self.data)

    def __str__(self) -> str:
        return self.name


def read_verification_pack(file: str | Path) -> tuple[list[bytes], list[bool]]:
    """The images of n pairs, 2i and 2i + 1 those of pair i, and whether each is one person.

    Files of Python 2 and 3, of any protocol, with images as bytes or numpy vectors, are read;
    nothing in them is run.

    Args:
        file: the pack.

    Returns:
        2n encoded images, JPEG as a rule, and n booleans.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: a ValueError, if it is truncated, holds anything else, has no images or an odd
            number of them, or one that is not an image.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"expected a verification pack at {file}, found none")
    content = unpickled(file)
    if not isinstance(content, (list, tuple)) or len(content) != 2:
        raise DataError(f"expected {file} to hold images and booleans, got {_kind(content)}")
    images = [as_bytes(image, f"{file}, image {i}") for i, image in enumerate(as_list(content[0]))]
    same = [as_bool(value, f"{file}, pair {i}") for i, value in enumerate(as_list(content[1]))]
    if not images or len(images) % 2:
        raise DataError(
            f"expected an even number of images in {file}, two a pair, got {len(images)}"
        )
    if len(images) != 2 * len(same):
        raise DataError(f"expected {len(images) // 2} booleans in {file}, got {len(same)}")
    for i, image in enumerate(images):
        image_size(EncodedImage(f"{file}, image {i}", image))
    return images, same


class _Unpickler(pickle.Unpickler):
    """Knows six functions by name, which are made anew for each file."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream, encoding="bytes")

        def encode(text: str, encoding: str = "latin1") -> bytes:
            if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
                raise pickle.UnpicklingError(f"a text in {encoding!r}")
            return text.encode("latin1")

        self.known: dict[str, Any] = {
            "_codecs.encode": encode,
            "ndarray": "numpy.ndarray",  # named, never called
            "dtype": lambda name, *_: _Dtype(name),
            "_reconstruct": lambda *_: _Array(),
            "_frombuffer": lambda buffer, dtype, shape, order: _array(buffer, dtype, shape),
            "scalar": lambda dtype, data: bool(_array(data, dtype, (1,))[0]),
        }

    def find_class(self, module: str, name: str) -> Any:
        core = module.replace("numpy._core.", "numpy.core.")
        homes = {
            "numpy.core.multiarray": ("_reconstruct", "scalar"),
            "numpy.core.numeric": ("_frombuffer",),
            "numpy": ("ndarray", "dtype"),
        }
        if (module, name) == ("_codecs", "encode"):
            return self.known["_codecs.encode"]
        if name in homes.get(core, ()):
            return self.known[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it asks for objects of another program")


class _Dtype:
    """Stands for numpy's dtype: bytes or booleans, whatever else the file says of them."""

    def __init__(self, name: str | bytes) -> None:
        text = name.decode("latin1") if isinstance(name, bytes) else name
        if not isinstance(text, str) or text.lstrip("|") not in DTYPES:
            raise pickle.UnpicklingError(f"it holds numbers of type {name!r}")
        self.type = DTYPES[text.lstrip("|")]

    def __setstate__(self, state: object) -> None:
        """Byte order and the like say nothing about single bytes."""


class _Array:
    """Stands for numpy's ndarray until its state has come."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, data = state
        self.value = _array(data, dtype, shape)


def _array(data: Any, dtype: Any, shape: Sequence[int]) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
        raise pickle.UnpicklingError("it holds an array that is not of bytes")
    return np.frombuffer(bytes(data), dtype=dtype.type).reshape(shape)


def unpickled(file: Path) -> Any:
    """The file's content, or a DataError."""
    with file.open("rb") as stream:
        data = io.BytesIO(stream.read())
    try:
        content = _Unpickler(data).load()
    except MemoryError:
        raise
    except Exception as error:  # pickle raises many types for a damaged file
        raise DataError(f"{file} is damaged or no verification pack: {error}") from error
    if data.read(1):
        raise DataError(f"{file} is damaged or no verification pack: it goes on after its end")
    return content


def as_list(content: Any) -> list[Any]:
    """A list, of a list, a tuple or an array; one that is none of these is refused as an image."""
    if isinstance(content, _Array) and content.value is not None:
        content = content.value
    if isinstance(content, np.ndarray):
        return list(content)
    return list(content) if isinstance(content, (list, tuple)) else [content]


def as_bytes(image: Any, where: str) -> bytes:
    """An encoded image; numpy's are vectors, or columns."""
    if isinstance(image, _Array):
        image = image.value
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        return image.tobytes()
    raise DataError(f"{where}: expected an encoded image as bytes, got {_kind(image)}")


def as_bool(value: Any, where: str) -> bool:
    """A boolean, or 0 or 1."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    if isinstance(value, np.integer) and value in (0, 1):
        return bool(value)
    raise DataError(f"{where}: expected a boolean, got {value!r:.80}")


def _kind(content: Any) -> str:
    return type(content).__name__.strip("_").lower()
