"""Images with labels, in memory or decoded when they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from mhe_core.training.images.reading import ImageFile, Size, decode

__all__ = ["ImageSet"]


@dataclass(frozen=True)
class ImageSet:
    """Images as uint8 [N, 3, height, width], decoded in memory or on demand.

    Attributes:
        labels: class of each image, int64 [N], in [0, C).
        classes: names of the C classes.
        size: height and width in pixels.
        pixels: all images, or None where they are decoded on demand.
        files: what the images are read from, where there is such: paths, or whatever opens like a
            file (:class:`ImageFile`), such as a pack's records.
        index: int64 [N], which of ``files`` each image is; None: image i is ``files[i]``.
    """

    labels: Tensor
    classes: tuple[str, ...]
    size: Size
    pixels: Tensor | None
    files: Sequence[ImageFile] = ()
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A batch, as torch's DataLoader asks for it: images [B, 3, height, width], labels [B]."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        if self.pixels is not None:
            return self.pixels[index], self.labels[index]
        images = [decode(self.file(i), self.size) for i in indices]
        return torch.stack(images), self.labels[index]

    def file(self, i: int) -> ImageFile:
        """What image i is read from; for sets that have ``files``."""
        return self.files[i if self.index is None else int(self.index[i])]

    @cached_property
    def digest(self) -> str:
        """Stands for the images' names, labels and size, not for their pixels or their place."""
        known = hashlib.sha256(repr((self.classes, self.size, len(self))).encode())
        known.update(self.labels.numpy().tobytes())
        for file in self.files:
            if not isinstance(file, Path):  # a pack's records have no names
                break
            known.update(f"{file.parent.name}/{file.name}\n".encode())
        if self.index is not None:
            known.update(self.index.numpy().tobytes())
        return known.hexdigest()

    def subset(self, indices: Tensor) -> ImageSet:
        """The images at the given indices [M], int64, with the same classes."""
        return replace(
            self,
            labels=self.labels[indices],
            pixels=None if self.pixels is None else self.pixels[indices],
            index=indices if self.index is None else self.index[indices],
        )

    def split(self, fraction: float, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """The images without, and the images of, a random ``fraction`` of each class."""
        generator = torch.Generator().manual_seed(seed)
        held_out = torch.zeros(len(self), dtype=torch.bool)
        for label in range(len(self.classes)):
            members = (self.labels == label).nonzero().flatten()
            order = members[torch.randperm(len(members), generator=generator)]
            held_out[order[: round(fraction * len(members))]] = True
        return self.subset((~held_out).nonzero().flatten()), self.subset(
            held_out.nonzero().flatten()
        )
