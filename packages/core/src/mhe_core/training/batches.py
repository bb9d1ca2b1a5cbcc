"""Batches as a pure function of (seed, step): a resumed run sees the images it would have seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from mhe_core.errors import UserError
from mhe_core.training.images import ImageSet

__all__ = ["StepSampler", "training_batches", "whole_set"]


class StepSampler(Sampler[list[int]]):
    """The indices of each training step's images, without end.

    Every epoch is a new permutation, cut into full batches; a process takes every
    ``num_processes``-th image of the batch.

    Args:
        num_images: N.
        batch_size: images a step, over all processes.
        seed: of the permutations.
        start: the first step.
        rank: of this process.
        num_processes: how many share a batch.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        if not num_processes <= batch_size <= num_images:
            raise UserError(
                f"expected a batch size from {num_processes} (processes) to {num_images} "
                f"(images), got {batch_size}"
            )
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.rank = rank
        self.num_processes = num_processes

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.num_images // self.batch_size
        epoch, first = divmod(self.start, batches)
        while True:
            generator = torch.Generator().manual_seed((self.seed << 24) + epoch)
            order = torch.randperm(self.num_images, generator=generator)
            for batch in range(first, batches):
                indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                yield indices[self.rank :: self.num_processes].tolist()
            epoch, first = epoch + 1, 0


def training_batches(
    images: ImageSet,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    workers: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    num_processes: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches from step ``start`` on: uint8 images [B, 3, h, w], labels [B]."""
    sampler = StepSampler(len(images), batch_size, seed, start, rank, num_processes)
    loader = _loader(images, sampler, workers, device)
    for pixels, labels in loader:
        yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def whole_set(
    images: ImageSet,
    batch_size: int,
    *,
    workers: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    num_processes: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in order, split over the processes without padding."""
    mine = list(range(rank, len(images), num_processes))
    parts = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    for pixels, labels in _loader(images, parts, workers, device):
        yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _loader(
    images: ImageSet,
    batches: Sampler[list[int]] | list[list[int]],
    workers: int,
    device: torch.device | str,
) -> DataLoader[Any]:
    return DataLoader(
        images,  # type: ignore[arg-type]  # fetched by __getitems__
        batch_sampler=batches,
        num_workers=0 if images.pixels is not None else workers,
        collate_fn=_as_it_is,
        pin_memory=torch.device(device).type == "cuda",
    )


def _as_it_is(batch: Any) -> Any:
    """What __getitems__ returns is a batch already; a function here can be sent to workers."""
    return batch
