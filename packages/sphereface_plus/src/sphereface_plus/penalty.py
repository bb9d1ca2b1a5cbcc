"""The energies of the class vectors and of the backbone's layers, as a penalty on the loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from mhe_core import (
    NetworkRegularizer,
    create_regularizer,
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
        name = None if config.regularizer == "none" else config.regularizer
        hidden = None if config.hidden_regularizer == "none" else config.hidden_regularizer
        self.anchored: nn.Module | None = None
        self.sharded: Callable[[Tensor], Tensor] | None = None
        if name is not None and isinstance(model.head, ShardedSphereFaceHead):
            self.sharded, name = sharded_energy(name, config, model.head), None
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

    def forward(self, step: int, class_vectors: Tensor, labels: Tensor) -> Tensor:
        """The penalty of a step: class vectors [C, d], labels [B] of the batch."""
        if step < self.start:
            return torch.zeros((), device=labels.device)
        energy = self.network().to(labels.device)
        own = self._of_class_vectors(labels)
        return energy if own is None else energy + clipped_penalty(own, class_vectors)

    def _of_class_vectors(self, labels: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The class vectors' weighted energy, where it is not the network regularizer's."""
        if (anchored := self.anchored) is not None:
            return lambda vectors: self.weight * anchored(vectors, anchors=labels.unique())
        if (sharded := self.sharded) is not None:
            return lambda vectors: self.weight * sharded(vectors)
        return None

    def update(self, class_vectors: Tensor, lr: float) -> None:
        """Advance the regularizers' state, once a step and before :meth:`forward`."""
        self.network.update(lr)
        update = getattr(self.anchored, "update", None)
        if update is not None:
            update(class_vectors.detach(), lr)


def anchored_regularizer(name: str, config: FaceConfig, head: nn.Module) -> nn.Module:
    """The regularizer of the batch's classes against all."""
    num_classes, dim = head.get_parameter("weight").shape
    regularizer = create_regularizer(name, num_classes, dim, **config.regularizer_options)
    if not getattr(regularizer, "takes_anchors", False):
        raise UserError(f"--anchors batch: the regularizer {name} has no anchors")
    return regularizer


def sharded_energy(
    name: str, config: FaceConfig, head: ShardedSphereFaceHead
) -> Callable[[Tensor], Tensor]:
    """The exact energy of the class vectors of all processes, given this one's."""
    regularizer = create_regularizer(name, head.num_classes, head.dim, **config.regularizer_options)
    potential = getattr(regularizer, "potential", None)
    if not isinstance(potential, Potential) or config.anchors == "batch":
        raise UserError(
            "--shard-classes goes with --anchors all and a --regularizer that is the mean of a "
            f"potential over pairs, such as mhe and half_mhe, got {name} and {config.anchors}"
        )
    half_space = bool(getattr(regularizer, "half_space", False))
    return partial(sharded_hyperspherical_energy, potential=potential, half_space=half_space)
