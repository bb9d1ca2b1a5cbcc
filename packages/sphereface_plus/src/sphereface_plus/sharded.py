"""Class vectors shared out over the processes, so that no device has to hold them all.

Process r holds the class vectors of its classes and computes their logits for the images of all
processes; the margin is applied where the label lives. The softmax over all classes is torch's
``loss_parallel``: only sums over classes travel, never logits or class vectors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from mhe_core.errors import UserError
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn import functional

from sphereface_plus.heads.base import check_batch
from sphereface_plus.heads.sphereface import SphereFaceHead

__all__ = ["ShardedSphereFaceHead", "gather_optimizer_state", "loss_parallel"]


class ShardedSphereFaceHead(SphereFaceHead):
    """A :class:`SphereFaceHead` of which each process holds a part of the classes.

    To be called by all processes, with as many images each; the loss is that of all their images.
    Forward and backward are to run within torch's ``loss_parallel()``.
    Its gradient is that of the whole loss, in the features, too: where DistributedDataParallel
    then averages the backbone's gradients, multiply the features' by the number of processes.

    Its state dict is a whole head's in process 0, which writes checkpoints, and is read back by
    heads of any number of processes.

    Args:
        dim: d, the dimension of the features.
        num_classes: C, the number of classes, over all processes.
        options: those of :class:`SphereFaceHead`.

    Raises:
        ValueError: if a process would be left without a class, or there is one process only.
    """

    def __init__(self, dim: int, num_classes: int, **options: Any) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise UserError("expected several processes (torchrun, accelerate launch), got one")
        self.share = share = -(-num_classes // dist.get_world_size())
        self.start = dist.get_rank() * share
        own = min(share, num_classes - self.start)
        if num_classes <= share * (dist.get_world_size() - 1):
            raise UserError(
                f"expected classes for each of {dist.get_world_size()} processes, "
                f"{share} or fewer each, got {num_classes}"
            )
        with torch.random.fork_rng(devices=[]):  # different vectors in each process
            torch.manual_seed(torch.initial_seed() + dist.get_rank())
            super().__init__(dim, own, **options)
        self.num_classes = num_classes
        # Checkpoints are gathered in main memory, whatever the devices are.
        self.main_memory: Any = dist.new_group(backend="gloo")
        self.register_state_dict_post_hook(_gather_weight)
        self.register_load_state_dict_pre_hook(_slice_weight)

    @property
    def rows(self) -> slice:
        """This process's classes."""
        return slice(self.start, self.start + len(self.weight))

    def forward(self, features: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """Mean cross entropy over the images of all processes; features ``[B, d]`` of this one.

        With ``classes``, ascending, over these alone of the ones that this process holds; they
        have all labels of all processes that are among its own.
        """
        if classes is None:
            logits = self.logits(features, labels)
            targets = gathered(labels, logits.device_mesh)
        else:
            logits, targets = self._sampled_logits(features, labels, classes)
        loss = functional.cross_entropy(logits, targets)
        if self.training:
            self.iteration += 1
        return loss.to_local() if isinstance(loss, DTensor) else loss

    def logits(
        self, features: Tensor, labels: Tensor, lam: float | Tensor | None = None
    ) -> DTensor:
        """Logits of all processes' images, ``[processes · B, C]``, a DTensor sharded by class."""
        mesh, everyones, own = self._everyones(features, labels)
        part = self.margin_logits(everyones, own, lam)
        return sharded_by_class(part, mesh, self.num_classes)

    def _everyones(self, features: Tensor, labels: Tensor) -> tuple[DeviceMesh, Tensor, Tensor]:
        """Features of all processes, and labels, as this one's classes; −1 for another's."""
        check_batch(features, labels, self.dim, self.num_classes)
        mesh = init_device_mesh(features.device.type, (dist.get_world_size(),))
        own = gathered(labels, mesh) - self.start
        own = torch.where((own >= 0) & (own < len(self.weight)), own, -1)
        return mesh, gathered(features, mesh), own

    def _sampled_logits(
        self, features: Tensor, labels: Tensor, classes: Tensor
    ) -> tuple[DTensor, Tensor]:
        """Logits of the sampled classes, as many columns a process, and the labels' columns.

        A process with fewer classes than another has columns of −∞, which no softmax counts.
        """
        mesh, everyones, own = self._everyones(features, labels)
        place = torch.where(own >= 0, torch.searchsorted(classes, own), -1)
        part = self.margin_logits(everyones, place, weight=self.weight[classes])
        width = torch.tensor(len(classes), device=features.device)
        dist.all_reduce(width, dist.ReduceOp.MAX)
        columns = int(width)
        part = functional.pad(part, (0, columns - len(classes)), value=-math.inf)
        # Only the process that holds a label reads its column.
        owner = gathered(labels, mesh) // self.share
        targets = owner * columns + place.clamp_min(0)
        return sharded_by_class(part, mesh, columns * dist.get_world_size()), targets

    def gather_rows(self, part: Tensor) -> Tensor:
        """All processes' rows in process 0, in its main memory; the others keep their own."""
        parts: list[Any] | None = None
        if dist.get_rank() == 0:
            parts = [None] * dist.get_world_size()
        dist.gather_object(part.detach().cpu(), parts, group=self.main_memory)
        return part if parts is None else torch.cat(parts)


def sharded_by_class(part: Tensor, mesh: DeviceMesh, columns: int) -> DTensor:
    """Logits ``[B, columns]`` of which each process has its classes' columns."""
    shape = torch.Size((len(part), columns))
    return DTensor.from_local(
        part, mesh, [Shard(1)], run_check=False, shape=shape, stride=(columns, 1)
    )


def gathered(part: Tensor, mesh: DeviceMesh) -> Tensor:
    """The rows of all processes; the gradient of each row comes from all of them."""
    whole = DTensor.from_local(part, mesh, [Shard(0)], run_check=False)
    whole = whole.redistribute(placements=[Replicate()])
    return whole.to_local(grad_placements=[Partial()])


def gather_optimizer_state(optimizer: torch.optim.Optimizer, head: ShardedSphereFaceHead) -> None:
    """Have the optimizer's state dict hold the state of all class vectors, as the head's does."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    number = next(i for i, p in enumerate(parameters) if p is head.weight)
    own_shape, whole_shape = head.weight.shape, (head.num_classes, head.dim)

    def gather(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        return replaced(saved, own_shape, head.gather_rows)

    def cut(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        return replaced(saved, whole_shape, lambda whole: whole[head.rows])

    def replaced(saved: dict[str, Any], shape: Any, change: Any) -> dict[str, Any]:
        of_weight = {
            key: change(value) if isinstance(value, Tensor) and value.shape == shape else value
            for key, value in saved["state"].get(number, {}).items()
        }
        state = {**saved["state"], number: of_weight} if of_weight else saved["state"]
        return {**saved, "state": state}

    optimizer.register_state_dict_post_hook(gather)
    optimizer.register_load_state_dict_pre_hook(cut)


def _gather_weight(head: ShardedSphereFaceHead, state: dict[str, Any], prefix: str, _: Any) -> None:
    state[f"{prefix}weight"] = head.gather_rows(state[f"{prefix}weight"])


def _slice_weight(head: ShardedSphereFaceHead, state: dict[str, Any], prefix: str, *_: Any) -> None:
    whole = state.get(f"{prefix}weight")
    if whole is not None and whole.shape == (head.num_classes, head.dim):
        state[f"{prefix}weight"] = whole[head.rows]
