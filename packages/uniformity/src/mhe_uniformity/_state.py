"""Regularizers with a state that is drawn from a seed, and equal on all ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from mhe_core.regularizers.arguments import check_rate, check_seed
from torch import Tensor
from torch import distributed as dist

from mhe_uniformity._base import Published, check_neurons

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Seeded"]

Self = TypeVar("Self", bound="Seeded")


class Seeded(Published):
    """What is drawn is a function of the seed and the number of updates, which are its state.

    The state has at least float32, to whatever dtype the module is cast, as steps at a small
    learning rate would be rounded away; and what was made on the meta device is drawn as soon as
    it has memory.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: as in :class:`Published`.
        seed: what the state is drawn from, from 0 to 2⁶³ − 1. None draws a seed from torch's global
            generator; in a distributed run, the first :meth:`update` then takes the seed and
            state of rank 0, so that it must be called on all ranks.
    """

    def __init__(
        self, num_neurons: int, dim: int, *, variant: str = "paper", seed: int | None = None
    ) -> None:
        super().__init__(num_neurons, dim, variant=variant)
        check_seed(seed)
        self.seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
        self.updates = 0
        self._ranks_agree = seed is not None

    def generator(self) -> torch.Generator:
        """For the draw of this update: on the CPU, so that all devices draw the same."""
        text = f"{self.seed} {self.updates}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    def reset_parameters(self) -> None:
        """Make the buffers, drawn from the seed, what they are at this number of updates."""

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the buffers, none of them to less than float32."""
        had_memory = not any(buffer.is_meta for buffer in self.buffers())

        def at_least_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            wide = torch.promote_types(moved.dtype, torch.float32)
            return moved if moved.dtype == wide else tensor.to(moved.device, wide)

        super()._apply(at_least_float32, recurse)
        if not had_memory and not any(buffer.is_meta for buffer in self.buffers()):
            self.reset_parameters()
        return self

    def update(self, neurons: Tensor, lr: float) -> None:
        """Count the update; the first makes all ranks agree.

        Raises:
            TypeError: if the neurons are not a floating-point tensor.
            ValueError: if they are not rows of the layer's dimension, or ``lr`` is not a finite
                number ≥ 0.
        """
        check_neurons(neurons, self.dim)
        check_rate(lr)
        self.agree()
        self.updates += 1

    def agree(self, group: ProcessGroup | None = None, *, alone: bool = False) -> None:
        """Take the seed and buffers of the group's first process, once in a process.

        Args:
            group: the processes that train this layer; by default all.
            alone: this process trains it without others, and takes nothing.
        """
        if self._ranks_agree:
            return
        self._ranks_agree = True
        if alone or not (dist.is_available() and dist.is_initialized()):
            return
        buffers = list(self.buffers())
        if not buffers:  # nothing is drawn; nor could a backend such as NCCL send from the CPU
            return
        first = dist.get_global_rank(group, 0) if group is not None else 0
        for buffer in buffers:
            dist.broadcast(buffer, first, group=group)
        counts = torch.tensor([self.seed, self.updates], device=buffers[0].device)
        dist.broadcast(counts, first, group=group)
        self.seed, self.updates = counts.tolist()

    def get_extra_state(self) -> Tensor:
        """Seed and number of updates, for the state dict.

        Not buffers: reading a number back from an accelerator would stall it at every update.
        """
        return torch.tensor([self.seed, self.updates])

    def set_extra_state(self, state: Tensor) -> None:
        """Continue from a state dict."""
        self.seed, self.updates = state.tolist()
