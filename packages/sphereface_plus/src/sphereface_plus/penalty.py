"""The energies of the class vectors and of the backbone's layers, as a penalty on the loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from mhe_core import (
    NetworkRegularizer,
    create_regularizer,
    hyperspherical_energy,
    sharded_hyperspherical_energy,
)
from mhe_core.energy import Potential
from mhe_core.errors import UserError
from mhe_core.network import clipped_penalty
from torch import Tensor, nn

from sphereface_plus.config import FaceConfig
from sphereface_plus.embedding import FaceModel
from sphereface_plus.sharded import ShardedSphereFaceHead

__all__ = ["Penalty"]


class Penalty(nn.Module):
    """The weighted energies that are added to the loss.

    Args:
        config: the run's settings.
        model: with the head, whose class vectors are regularized, and the backbone.

    Raises:
        ValueError: if the regularizer has no anchors and they were asked for, or cannot work on
            class vectors that are shared out over processes.
    """

    def __init__(self, config: FaceConfig, model: FaceModel) -> None:
        super().__init__()
        self.weight, self.start = config.output_weight, config.regularizer_start
        self.every = config.penalty_every
        name = None if config.regularizer == "none" else config.regularizer
        hidden = None if config.hidden_regularizer == "none" else config.hidden_regularizer
        self.anchored: nn.Module | None = None
        self.energy: Callable[[Tensor], Tensor] | None = None
        self.sampled = config.anchors == "sampled"
        if name is not None and (config.shard_classes or self.sampled):
            sizes = (len(model.class_vectors), config.dim)
            if isinstance(model.head, ShardedSphereFaceHead):
                sizes = (model.head.num_classes, config.dim)
            self.energy, name = energy_of_rows(name, config, *sizes), None
        elif name is not None and config.anchors == "batch":
            self.anchored, name = anchored_regularizer(name, config, model.head), None
        self.network = NetworkRegularizer(
            model,
            hidden=hidden,
            output=name,
            hidden_weight=config.hidden_weight,
            output_weight=config.output_weight,
            output_options=config.regularizer_options,
            output_layer="head",
            rules=config.rules,
        )

    def forward(
        self, step: int, class_vectors: Tensor, labels: Tensor, classes: Tensor | None = None
    ) -> Tensor:
        """The penalty of a step.

        Args:
            step: the step.
            class_vectors: those that this process holds, ``[C, d]``.
            labels: of its batch, ``[B]``.
            classes: those of them that the step's loss is over; None: all.
        """
        if step < self.start or self._skips(step):
            return torch.zeros((), device=labels.device)
        penalty = self.network().to(labels.device)
        own = self._of_class_vectors(labels, classes if self.sampled else None)
        if own is not None:
            penalty = penalty + clipped_penalty(own, class_vectors)
        return self.every * penalty

    def _of_class_vectors(
        self, labels: Tensor, classes: Tensor | None
    ) -> Callable[[Tensor], Tensor] | None:
        """The class vectors' weighted energy, where it is not the network regularizer's."""
        if (anchored := self.anchored) is not None:
            return lambda vectors: self.weight * anchored(vectors, anchors=labels.unique())
        if (energy := self.energy) is not None:
            rows = slice(None) if classes is None else classes
            return lambda vectors: self.weight * energy(vectors[rows])
        return None

    def update(self, step: int, class_vectors: Tensor, lr: float) -> None:
        """Advance the regularizers' state, once a step and before :meth:`forward`."""
        if self._skips(step):
            return
        self.network.update(lr)
        update = getattr(self.anchored, "update", None)
        if update is not None:
            update(class_vectors.detach(), lr)

    def _skips(self, step: int) -> bool:
        """Whether the step is one of those between two uses."""
        return (step - self.start) % self.every != 0


def anchored_regularizer(name: str, config: FaceConfig, head: nn.Module) -> nn.Module:
    """The regularizer of the batch's classes against all."""
    num_classes, dim = head.get_parameter("weight").shape
    regularizer = create_regularizer(name, num_classes, dim, **config.regularizer_options)
    if not getattr(regularizer, "takes_anchors", False):
        raise UserError(f"--anchors batch: the regularizer {name} has no anchors")
    return regularizer


def energy_of_rows(
    name: str, config: FaceConfig, num_classes: int, dim: int
) -> Callable[[Tensor], Tensor]:
    """The exact energy of class vectors with each other, those of other processes among them."""
    regularizer = create_regularizer(name, num_classes, dim, **config.regularizer_options)
    potential = getattr(regularizer, "potential", None)
    if not isinstance(potential, Potential) or config.anchors == "batch":
        flag, anchors = "--anchors sampled", ""
        if config.shard_classes:
            flag, anchors = "--shard-classes", "--anchors all or sampled and "
        raise UserError(
            f"{flag} goes with {anchors}a --regularizer that is the mean of a potential over "
            f"pairs, such as mhe and half_mhe, got {name} and {config.anchors}"
        )
    half_space = bool(getattr(regularizer, "half_space", False))
    if config.shard_classes:
        return partial(sharded_hyperspherical_energy, potential=potential, half_space=half_space)
    return partial(hyperspherical_energy, potential=potential, half_space=half_space)
