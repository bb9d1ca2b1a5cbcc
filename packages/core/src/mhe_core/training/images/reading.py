"""From an image file to RGB: the one reader of all commands.

What a plain ``convert("RGB")`` of Pillow loses is kept here: the orientation that a camera wrote
into EXIF, the upper half of 16-bit grey, the fractions of floating point, what shows through alpha.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from mhe_core.errors import UserError

__all__ = [
    "DataError",
    "ImageFile",
    "Size",
    "decode",
    "image_size",
    "opened",
    "read_image",
    "resize",
    "to_tensor",
]

Size = tuple[int, int]

ORIENTATION, BITS, PHOTOMETRIC, WHITE_IS_ZERO = 0x0112, 258, 262, 0
TURNED = (5, 6, 7, 8)  # orientations in which height and width change places
SCALES = (1.0, 255.0, 65535.0)  # of files that do not say which value is white
OVERSHOOT = 0.1  # of its scale, by which sharpening and resizing push values beyond black and white


class DataError(UserError):
    """Images that cannot be used; names the file or folder."""


class ImageFile(Protocol):
    """A file, or what opens like one: a :class:`pathlib.Path`, ``zipfile.Path``, a pack's record.

    ``str()`` of it names it in messages.
    """

    def open(self, mode: Literal["rb"], /) -> IO[bytes]:
        """The encoded image."""


@contextmanager
def opened(file: ImageFile) -> Iterator[Image.Image]:
    """The image in a file; whatever goes wrong with it is a DataError with the file's name."""
    try:
        with warnings.catch_warnings():
            # Large photographs are welcome; twice that size is an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with file.open("rb") as stream, Image.open(stream) as image:
                yield image
    except MemoryError:  # the machine's fault, not the file's
        raise
    except Exception as error:  # Pillow raises many types for a damaged file
        raise DataError(f"cannot read the image {file}: {error}") from error


def read_image(file: ImageFile) -> Image.Image:
    """An image as RGB, 8 bits a channel, upright.

    - EXIF: turned as the camera held it.
    - Grey of more than 8 bits: scaled by what its format calls white, 65535 for PNG and
      ``2**bits − 1`` for TIFF. Floating point and 32-bit integers do not say what white is: it is
      1, 255 or 65535, the smallest that no value exceeds by more than a tenth, which is clipped.
    - Palettes and alpha: laid over white, as a browser's page shows them.
    - CMYK, YCbCr and the like: by Pillow's formulas; colour profiles are not applied.
    - Animations and files of several pages: the first.

    Args:
        file: a path, or what opens like one.

    Raises:
        DataError: for a missing, damaged, truncated or enormous file (of more than 179 million
            pixels), and values that no scale fits, NaN among them; names the file.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp(), "deep.png")
        >>> Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16)).save(file)
        >>> [read_image(file).getpixel((x, 0))[0] for x in range(3)]
        [0, 128, 255]
    """
    with opened(file) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith(("I", "F")):
            levels = _levels(np.asarray(image), image)
            return Image.fromarray(levels).convert("RGB")
        if image.has_transparency_data:
            colours = image.convert("RGBA")
            page = Image.new("RGBA", colours.size, "white")
            return Image.alpha_composite(page, colours).convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")


def image_size(file: ImageFile) -> Size:
    """Height and width of an upright image, from the file's header.

    Raises:
        DataError: if the file has no header of an image; names the file.
    """
    with opened(file) as image:
        turned = image.getexif().get(ORIENTATION) in TURNED
        return (image.width, image.height) if turned else (image.height, image.width)


def decode(file: ImageFile, size: Size) -> Tensor:
    """An image as RGB, uint8 [3, height, width], resized if it has another size.

    Raises:
        DataError: as :func:`read_image`.
    """
    return to_tensor(resize(read_image(file), size))


def resize(image: Image.Image, size: Size) -> Image.Image:
    """The image at ``size``, height and width, bilinear over all pixels that shrink into one."""
    if (image.height, image.width) == size:
        return image
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image of Pillow's as uint8 [3, height, width]."""
    pixels = np.asarray(image)
    planes = np.empty((3, *pixels.shape[:2]), np.uint8)
    for channel in range(3):  # three times as fast as to permute them all at once
        planes[channel] = pixels[..., channel]
    return torch.from_numpy(planes)


def _levels(grey: NDArray[Any], image: Image.Image) -> NDArray[np.uint8]:
    """Grey of more than 8 bits [h, w] as uint8."""
    values = grey.astype(np.float64)
    white = _declared_white(image)
    if white is None:
        white = _guessed_white(float(values.min()), float(values.max()))
    if _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO and image.mode.startswith("I;16"):
        values = white - values  # Pillow turns only 8-bit grey
    levels: NDArray[np.uint8] = np.rint((values * (255 / white)).clip(0, 255)).astype(np.uint8)
    return levels


def _declared_white(image: Image.Image) -> float | None:
    """The value that the file's format calls white, if it has one."""
    if image.mode.startswith("I;16"):
        bits = _tag(image, BITS)
        return 65535.0 if bits is None else 2.0**bits - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # older Pillow's 16 bits
        return 65535.0
    return None


def _guessed_white(lowest: float, highest: float) -> float:
    scale = next((scale for scale in SCALES if highest <= (1 + OVERSHOOT) * scale), None)
    if scale is not None and lowest >= -OVERSHOOT * scale:
        return scale
    raise ValueError(
        f"expected grey values in [0, 1], [0, 255] or [0, 65535], got {lowest:g} to {highest:g}"
    )


def _tag(image: Image.Image, number: int) -> int | None:
    """A TIFF tag's first value."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) else value
