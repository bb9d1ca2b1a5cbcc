"""What every head shares: class vectors, the check of a batch, cosines, sums over processes."""

from __future__ import annotations

import math
from abc import abstractmethod
from numbers import Integral

import torch
import torch.distributed as dist
from mhe_core.autocast import without_autocast
from mhe_core.errors import UserError
from torch import Tensor, nn
from torch.nn import functional

from sphereface_plus.heads.products import products_with_directions, unit_rows

__all__ = [
    "Head",
    "add_margin",
    "add_margin_or_line",
    "at_labels",
    "check_batch",
    "check_range",
    "cross_entropy",
    "detached",
    "mean_over_processes",
    "with_labels",
]


class Head(nn.Module):
    """Class vectors and a loss that pulls features to theirs; calling it gives a batch's loss.

    A head of one's own derives from it, or is any module that takes ``(dim, num_classes)``, holds
    its class vectors as ``weight`` and maps features and labels to a loss; see
    :func:`~sphereface_plus.heads.create_head`.

    Args:
        dim: d, the dimension of the features.
        num_classes: C, the number of classes.

    Attributes:
        weight: the class vectors, ``[C, d]``.
        may_sample_classes: whether the loss may be that of a part of the class vectors
            (--sample-rate): it reads them, and does not write them.

    Raises:
        ValueError: if a size is not positive.
    """

    may_sample_classes = True

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("num_classes", num_classes)):
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise UserError(f"expected {name} as a positive integer, got {value!r}")
        self.dim, self.num_classes = dim, num_classes = int(dim), int(num_classes)
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(num_classes, dim)))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Loss of the features ``[B, d]``, floating point, with labels ``[B]``, int64.

        Computed in float32 at least, under autocast, too. In training mode the head's state, if
        it has any, goes on by one batch.

        Raises:
            ValueError: if the shapes do not fit, or a label is not a class.
        """
        check_batch(features, labels, self.dim, self.num_classes)
        with without_autocast(features.device):
            x = features.to(torch.promote_types(features.dtype, torch.float32))
            return self.loss(x, labels)

    @abstractmethod
    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """What :meth:`forward` gives, once the batch is checked and wide."""

    def scaled_cosines(self, features: Tensor, scale: float, largest: float = 1.0) -> Tensor:
        """s·cos θ of features ``[B, d]`` with all class vectors, ``[B, C]``, cos θ in ±largest.

        As published for heads that are not OpenSphere's, no gradient comes from beyond. (Features
        are scaled, not the product, which has more entries.)
        """
        weight = self.weight.to(features.dtype)
        products = products_with_directions(scale * unit_rows(features), weight)
        return products.clamp(-scale * largest, scale * largest)

    def extra_repr(self) -> str:
        """The sizes and all plain numbers, for ``print(module)``."""
        options = {k: v for k, v in vars(self).items() if isinstance(v, (int, float, str))}
        return ", ".join(f"{k}={v!r}" for k, v in options.items() if k != "training")


def detached(cosines: Tensor, values: Tensor) -> Tensor:
    """The given values, with the gradient of the cosines: a margin outside the graph."""
    return cosines + (values - cosines).detach()


def at_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """The logit at each label, ``[B, 1]``."""
    return logits.gather(1, labels.unsqueeze(1))


def with_labels(logits: Tensor, labels: Tensor, values: Tensor) -> Tensor:
    """The logits with others ``[B, 1]`` at the labels."""
    return logits.scatter(1, labels.unsqueeze(1), values)


def add_margin(cosines: Tensor, m: float | Tensor) -> Tensor:
    """cos(θ + m), given cos θ; its gradient is finite at θ = 0 and π, too."""
    sines = (1 - cosines.square()).clamp_min(torch.finfo(cosines.dtype).eps).sqrt()
    angle = torch.as_tensor(m, dtype=cosines.dtype, device=cosines.device)
    return cosines * angle.cos() - sines * angle.sin()


def add_margin_or_line(cosines: Tensor, m: float | Tensor) -> Tensor:
    """cos(θ + m), and cos θ − m sin m where θ + m passes π, where it jumps; as published."""
    angle = torch.as_tensor(m, dtype=cosines.dtype, device=cosines.device)
    beyond = cosines <= (math.pi - angle).cos()
    return torch.where(beyond, cosines - angle * angle.sin(), add_margin(cosines, m))


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a figure over all processes, the same in each; without a gradient."""
    value = value.detach().clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of logits ``[B, C]``."""
    return functional.cross_entropy(logits, labels)


def check_range(head: str, **ranges: tuple[float, float, float]) -> None:
    """Raise a UserError for an option outside of its range; each is (value, lowest, highest)."""
    for name, (value, low, high) in ranges.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:
            raise UserError(
                f"expected {name} of the head {head} in [{low:g}, {high:.4g}], got {value!r}"
            )


def check_batch(features: Tensor, labels: Tensor, dim: int, num_classes: int) -> None:
    """Raise a ValueError that says what was expected and what came."""
    if features.ndim != 2 or features.shape[1] != dim or not features.is_floating_point():
        raise ValueError(
            f"expected features as floating point [B, {dim}], "
            f"got {features.dtype} {list(features.shape)}"
        )
    if labels.shape != features.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"expected labels as int64 [{len(features)}], got {labels.dtype} {list(labels.shape)}"
        )
    # On an accelerator the range is left to the kernels: reading it here would wait for them.
    if labels.device.type == "cpu" and len(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(f"expected labels in [0, {num_classes - 1}], got {low} to {high}")
