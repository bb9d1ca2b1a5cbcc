"""Where images to be scored come from: a folder, an .npz, a GAN's run, or statistics of them."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mhe_core.training.images import DataError, find_images, read_image, to_tensor
from mhe_core.training.run import CONFIG_FILE
from torch import Tensor

from mhe_gan.features import FeatureSet
from mhe_gan.sample import load_generator, scored_samples

__all__ = ["ImageSource", "open_source"]

FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    ".webp": "WebP",
    ".avif": "AVIF",
    **dict.fromkeys((".jp2", ".j2k", ".jpx", ".jpc"), "JPEG 2000"),
}


@dataclass(frozen=True)
class ImageSource:
    """Images that are read when they are asked for, so that no more than a batch is in memory.

    Attributes:
        name: what the user called them.
        num_images: how many there are to be read.
        batches: reads them, as batches of uint8 [B, 3, h, w]; those of a batch are of one size.
        formats: how many files are of each format with losses, and how many other; empty where
            they are no files.
        notes: what was left out of a folder, and the like.
    """

    name: str
    num_images: int
    batches: Callable[[], Iterator[Tensor]]
    formats: Counter[str]
    notes: tuple[str, ...] = ()


def open_source(
    name: str,
    *,
    num_images: int | None = None,
    default_samples: int = 10_000,
    batch_size: int = 100,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ImageSource | FeatureSet:
    """Images, or statistics of them, by the name that a user gives.

    Args:
        name: a folder of images, searched deeply; the run directory of a GAN; an .npz with one
            array of uint8 images, [N, h, w, 3] or [N, 3, h, w], or grey ones, with 1 in place of 3
            or [N, h, w]; or an .npz of statistics.
        num_images: take so many, drawn by the seed; default: all.
        default_samples: how many to draw from a GAN where ``num_images`` is not given.
        batch_size: images at a time.
        seed: of the images drawn, and of a GAN's noise.
        device: where a GAN generates.

    Raises:
        DataError: if there is no such thing, or there are no images in it, or too few.
        StatisticsError: if statistics cannot be read.
    """
    path = Path(name)
    if (path / CONFIG_FILE).is_file():
        return gan_samples(path, num_images or default_samples, batch_size, seed, device)
    if path.is_dir():
        return folder(path, num_images, batch_size, seed)
    if not path.is_file():
        raise DataError(
            "expected a folder of images, the run directory of a GAN, or an .npz of images or "
            f"statistics, got {name}, which is neither"
        )
    if (member := image_array(path)) is None:
        found = FeatureSet.load(path)
        if num_images is None or found.num_images is None:  # of moments there is no part
            return found
        return found.subset(num_images, seed)
    return array(path, member, num_images, batch_size, seed)


def gan_samples(
    run: Path, num_images: int, batch_size: int, seed: int, device: torch.device | str
) -> ImageSource:
    """Samples of a run's final generator, of classes as frequent as in training."""

    def batches() -> Iterator[Tensor]:
        generator, _, _ = load_generator(run)
        yield from scored_samples(generator.to(device), num_images, seed, batch_size)

    return ImageSource(str(run), num_images, batches, Counter())


def folder(root: Path, num_images: int | None, batch_size: int, seed: int) -> ImageSource:
    """All images below a folder, or some of them."""
    found = find_images(root)
    if not found.paths:
        raise DataError(f"expected images in {root}, found none")
    paths = [found.paths[i] for i in chosen(len(found.paths), num_images, seed, root)]

    def batches() -> Iterator[Tensor]:
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(paths), batch_size):
                part = paths[start : start + batch_size]
                yield from of_one_size(list(pool.map(lambda p: to_tensor(read_image(p)), part)))

    formats = Counter(FORMATS.get(path.suffix.lower(), "other") for path in paths)
    notes = tuple(f"{root}: {remark}" for remark in found.remarks())
    return ImageSource(str(root), len(paths), batches, formats, notes)


def of_one_size(images: list[Tensor]) -> Iterator[Tensor]:
    """Images in order, as batches that end where the size changes."""
    start = 0
    for end in range(1, len(images) + 1):
        if end == len(images) or images[end].shape != images[start].shape:
            yield torch.stack(images[start:end])
            start = end


def image_array(file: Path) -> str | None:
    """The one array of uint8 images in an .npz, by its name; None if it holds statistics.

    Raises:
        DataError: if the file is no .npz, or has several arrays of images.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            found = []
            for name in members:
                with archive.open(name) as stream:
                    shape, _, dtype = header(stream)
                if dtype == np.uint8 and as_channels_first(shape) is not None:
                    found.append(name)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(f"expected an .npz of images or statistics, got {file}: {error}") from error
    if len(found) > 1:
        names = ", ".join(name.removesuffix(".npy") for name in found)
        raise DataError(f"expected one array of images in {file}, got {names}")
    return found[0] if found else None


def as_channels_first(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """In which order an array of images has its axes [N, channels, h, w]; None if it has none.

    Example:
        >>> as_channels_first((60, 32, 28, 3)), as_channels_first((60, 32, 28))
        ((0, 3, 1, 2), (0, 3, 1, 2))
    """
    if len(shape) == 3:
        one_image = shape[2] <= 4  # in colour: images are larger than that
        return None if one_image else (0, 3, 1, 2)
    if len(shape) == 4 and shape[3] in (1, 3):
        return 0, 3, 1, 2
    return (0, 1, 2, 3) if len(shape) == 4 and shape[1] in (1, 3) else None


def array(
    file: Path, member: str, num_images: int | None, batch_size: int, seed: int
) -> ImageSource:
    """The images of an .npz, read piece by piece."""
    with zipfile.ZipFile(file) as archive, archive.open(member) as stream:
        shape, fortran, _ = header(stream)
    if fortran or 0 in shape:
        raise DataError(f"expected images [N, h, w, 3] in C order in {file}, got {list(shape)}")
    wanted = torch.zeros(shape[0], dtype=torch.bool)
    wanted[chosen(shape[0], num_images, seed, file)] = True
    axes = as_channels_first(shape)
    assert axes is not None

    def batches() -> Iterator[Tensor]:
        try:
            yield from read()
        except (zipfile.BadZipFile, RuntimeError, OSError) as error:
            raise DataError(f"cannot read the images of {file}: {error}") from error

    def read() -> Iterator[Tensor]:
        with zipfile.ZipFile(file) as archive, archive.open(member) as stream:
            header(stream)
            for part in wanted.split(batch_size):
                size = (len(part), *shape[1:])
                size += (1,) * (4 - len(size))
                content = stream.read(int(np.prod(size)))
                images = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(size)[part]
                if len(images):
                    images = images.permute(axes).expand(-1, 3, -1, -1)  # grey ones thrice
                    yield images.contiguous()

    return ImageSource(str(file), int(wanted.sum()), batches, Counter())


def header(stream: object) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of an array in numpy's format; the stream is then at its values."""
    version = np.lib.format.read_magic(stream)  # type: ignore[arg-type]
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)  # type: ignore[arg-type]
    return np.lib.format.read_array_header_2_0(stream)  # type: ignore[arg-type]


def chosen(count: int, num_images: int | None, seed: int, origin: Path) -> list[int]:
    """Indices of all images, or of some drawn by the seed, in order."""
    if num_images is None or num_images == count:
        return list(range(count))
    if num_images > count:
        raise DataError(f"expected at least {num_images} images in {origin}, found {count}")
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:num_images].sort().values.tolist()
