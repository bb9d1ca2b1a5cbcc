"""Embeddings by any network in ONNX, such as ``export`` writes or others publish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mhe_core.errors import UserError
from mhe_core.training.augment import normalize
from mhe_core.training.batches import whole_set
from mhe_core.training.images import DataError
from numpy.typing import NDArray

from sphereface_plus.embed import named_images
from sphereface_plus.pairs import images_on_demand

__all__ = ["embed_with_onnx"]


def embed_with_onnx(
    model: Path, source: Path, batch_size: int = 32
) -> tuple[NDArray[np.float64], list[str]]:
    """Embeddings of the images of a folder or pack, each with its mirror image's, summed.

    The network takes RGB, float32 [B, 3, h, w], (x − 127.5) / 128; images are resized to its size.

    Args:
        model: the network's file.
        source: a folder of aligned faces, or a pack.
        batch_size: images at a time; one where the network takes no more.

    Raises:
        UserError: if onnxruntime is not installed.
        DataError: if the file is no such network.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("--onnx needs onnxruntime: pip install onnxruntime") from error
    if not model.is_file():
        raise FileNotFoundError(f"expected a network in ONNX at {model}, found none")
    try:
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has exceptions of its own
        raise DataError(f"cannot read a network from {model}: {error}") from error
    wanted = session.get_inputs()[0]
    shape = list(wanted.shape)
    if len(shape) != 4 or shape[1] != 3 or not all(isinstance(side, int) for side in shape[2:]):
        raise DataError(
            f"expected a network of images [B, 3, height, width] in {model}, got {shape}"
        )
    names, files = named_images(source)
    images = images_on_demand(files, (shape[2], shape[3]))
    batch_size = shape[0] if isinstance(shape[0], int) else batch_size
    parts = []
    for pixels, _ in whole_set(images, batch_size):
        x = normalize(pixels)
        missing = batch_size - len(x) if isinstance(shape[0], int) else 0
        both = [
            session.run(None, {wanted.name: padded(y, missing).numpy()})[0][: len(x)]
            for y in (x, x.flip(-1))
        ]
        parts.append(both[0].astype(np.float64) + both[1])
    return np.concatenate(parts), names


def padded(images: torch.Tensor, missing: int) -> torch.Tensor:
    """The images and ``missing`` black ones, for a network of one batch size."""
    if not missing:
        return images.contiguous()
    return torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
