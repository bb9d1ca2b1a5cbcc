"""``sphereface-plus embed``: every image of a folder or a pack as an embedding, in one file."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from mhe_core.errors import UserError
from mhe_core.training.augment import normalize
from mhe_core.training.batches import whole_set
from mhe_core.training.command import parse, run_command
from mhe_core.training.images import DataError, ImageFile, find_images
from mhe_core.training.processes import resolve_device
from numpy.typing import NDArray
from torch import nn

from sphereface_plus.embedding import FACENET_SIZE, MIRRORED, load_embedder, load_run
from sphereface_plus.packs import EncodedImage, RecordPack, read_verification_pack
from sphereface_plus.pairs import images_on_demand
from sphereface_plus.textfile import read_lines

__all__ = ["EmbedConfig", "embed_images", "main", "read_embeddings"]


@dataclass(kw_only=True)
class EmbedConfig:
    """Write the embeddings of aligned faces and their names, image after image.

    The file is numpy's .npz with embeddings, float32 [N, d], and names, [N].

    Attributes:
        run: a run directory of train.
        images: a folder of aligned faces, in any folders, or a pack (.rec or .bin).
        output: the .npz file.
        mirror: how the mirror image's embedding is taken in: sum, concatenate or none.
        embedder: a pretrained network in place of a run, facenet-vggface2 or facenet-casia.
        weights: its weights; default: downloaded.
        checkpoint: of the run, best or last.
        batch_size: images embedded at a time.
        workers: processes that decode images.
        device: auto, cpu, cuda, cuda:1, ….
    """

    run: Path | None = None
    images: Path
    output: Path
    mirror: Literal["sum", "concatenate", "none"] = "sum"
    embedder: str | None = None
    weights: Path | None = None
    checkpoint: str = "best"
    batch_size: int = 128
    workers: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        """Check that the settings fit each other."""
        if (self.run is None) == (self.embedder is None):
            raise UserError("expected either a run directory or --embedder")
        if self.weights is not None and self.embedder is None:
            raise UserError(f"--weights goes with --embedder, got it with {self.run}")
        if self.output.suffix != ".npz":
            raise UserError(f"expected --output as a .npz file, got {self.output}")
        if self.batch_size < 1:
            raise UserError(f"expected --batch-size above 0, got {self.batch_size}")


def embed_images(config: EmbedConfig) -> int:
    """Write ``config.output``; a batch at a time is in memory.

    Returns:
        How many images there were.

    Raises:
        DataError: if an image cannot be read; nothing is written.
    """
    names, files = named_images(config.images)
    backbone, size = load_network(config)
    device = resolve_device(config.device)
    images = images_on_demand(files, size)
    batches = whole_set(images, config.batch_size, workers=config.workers, device=device)
    parts = (rows_of(backbone.to(device), pixels, config.mirror) for pixels, _ in batches)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = config.output.with_name(f".{config.output.name}.writing")
    try:
        write_rows(temporary, parts, names)
        temporary.replace(config.output)
    finally:
        temporary.unlink(missing_ok=True)
    return len(names)


def named_images(source: Path) -> tuple[list[str], Sequence[ImageFile]]:
    """Names and files of the images of a folder or a pack.

    Raises:
        DataError: if there are none.
    """
    if source.suffix == ".bin":
        images, _ = read_verification_pack(source)
        named = [EncodedImage(f"image {i} of {source}", data) for i, data in enumerate(images)]
        return [str(i) for i in range(len(images))], named
    if source.suffix == ".rec" or (source.is_dir() and any(source.glob("[!.]*.rec"))):
        pack = RecordPack(source)
        return [str(key) for key in pack.keys.tolist()], pack
    if not source.is_dir():
        raise FileNotFoundError(f"expected a folder of images or a pack at {source}, found none")
    found = find_images(source).paths
    if not found:
        raise DataError(f"expected images in {source}, found none")
    return [path.relative_to(source).as_posix() for path in found], found


def load_network(config: EmbedConfig) -> tuple[nn.Module, tuple[int, int]]:
    """The network and the size of its images."""
    if config.run is None:
        return load_embedder(str(config.embedder), config.weights), FACENET_SIZE
    model, _, facts = load_run(config.run, config.checkpoint)
    return model.backbone, tuple(facts["image_size"])


@torch.no_grad()
def rows_of(backbone: nn.Module, pixels: torch.Tensor, mirror: str) -> NDArray[np.float32]:
    """Embeddings of a batch of uint8 images [B, 3, h, w]."""
    x = normalize(pixels)
    plain = backbone(x).float()
    if mirror != "none":
        way = {"sum": "insightface", "concatenate": "sphereface"}[mirror]
        plain = MIRRORED[way](plain, backbone(x.flip(-1)).float())
    return plain.cpu().numpy()


def write_rows(file: Path, parts: Iterator[NDArray[np.float32]], names: Sequence[str]) -> None:
    """An .npz file of parts that come one after the other, and of names."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("embeddings.npy", "w", force_zip64=True) as stream:
            for number, part in enumerate(parts):
                if number == 0:
                    write_header(stream, (len(names), part.shape[1]))
                stream.write(np.ascontiguousarray(part, dtype="<f4").tobytes())
        with archive.open("names.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, np.array(names), allow_pickle=False)


def write_header(stream: IO[bytes], shape: tuple[int, int]) -> None:
    """Numpy's header of a float32 array."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(stream, header)


def read_embeddings(
    file: Path, names: Path | None = None
) -> tuple[NDArray[np.float64], list[str] | None]:
    """Anybody's embeddings ``[N, d]``, and their names where there are any.

    Args:
        file: an .npz file with ``embeddings`` and perhaps ``names``, or an .npy file.
        names: a text file with a name a line, in place of the .npz file's.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if the file is no such thing, or names are not as many.
    """
    try:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            found, listed = content, None
        else:
            found = content["embeddings"]
            listed = content["names"].tolist() if "names" in content.files else None
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy raises many types for a damaged file
        raise DataError(f"cannot read embeddings from {file}: {error}") from error
    if found.ndim != 2 or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
        raise DataError(
            f"expected finite embeddings [N, d] in {file}, got {found.dtype} {list(found.shape)}"
        )
    listed = read_lines(names) if names is not None else listed
    if listed is not None and len(listed) != len(found):
        raise DataError(f"expected a name for each of {len(found)} embeddings, got {len(listed)}")
    return found.astype(np.float64), listed


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    has_embedder = any(argument.split("=")[0] == "--embedder" for argument in arguments)
    positional = () if has_embedder else ("run",)
    config = parse(EmbedConfig, arguments, "sphereface-plus embed", positional)
    print(f"{embed_images(config)} embeddings in {config.output}")


if __name__ == "__main__":
    sys.exit(run_command("sphereface-plus embed", main, sys.argv[1:]))
