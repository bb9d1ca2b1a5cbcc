"""The adversarial losses, on logits: the higher, the more the discriminator believes.

A third party's loss is found by its entry point in the group ``mhe_gan.losses``, which names a
:class:`Loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import relu, softplus

from mhe_gan.plugins import find

__all__ = ["LOSSES", "Loss", "discriminator_loss", "find_loss", "generator_loss"]

GROUP = "mhe_gan.losses"


@dataclass(frozen=True)
class Loss:
    """What the two networks minimise.

    Attributes:
        discriminator: of the logits [B] of real and [B'] of generated images, a scalar.
        generator: of the logits [B] of generated images, a scalar.
        no_mistake: a discriminator whose loss is smaller makes no mistake, and teaches the
            generator nothing: a run that stays there is stopped. None: no loss says so.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    no_mistake: float | None = None


LOSSES = {
    "non_saturating": Loss(
        lambda real, fake: softplus(-real).mean() + softplus(fake).mean(),
        lambda fake: softplus(-fake).mean(),
        no_mistake=1e-3,
    ),
    "hinge": Loss(
        lambda real, fake: relu(1 - real).mean() + relu(1 + fake).mean(),
        lambda fake: -fake.mean(),
        no_mistake=1e-3,
    ),
}


def find_loss(kind: str) -> Loss:
    """The loss of that name, ours or an installed package's.

    Raises:
        UserError: for an unknown name, or an entry point that names no :class:`Loss`.
    """
    return find(kind, LOSSES, GROUP, Loss, "loss")


def discriminator_loss(real: Tensor, fake: Tensor, kind: str = "non_saturating") -> Tensor:
    """What the discriminator minimises.

    ``non_saturating`` is the cross entropy of Goodfellow et al. (NeurIPS 2014),
    softplus(−real) + softplus(fake); ``hinge`` (Lim and Ye, 2017) is
    max(0, 1 − real) + max(0, 1 + fake).

    Args:
        real: logits [B] of real images.
        fake: logits [B'] of generated images.
        kind: one of ``LOSSES``, or an installed package's.

    Returns:
        Scalar, the mean over images.

    Raises:
        ValueError: if ``kind`` is unknown.

    Example:
        >>> import torch
        >>> discriminator_loss(torch.zeros(2), torch.zeros(2))  # no idea: 2 log 2
        tensor(1.3863)
    """
    return find_loss(kind).discriminator(real, fake)


def generator_loss(fake: Tensor, kind: str = "non_saturating") -> Tensor:
    """What the generator minimises: softplus(−fake), or −fake for ``hinge``.

    Args:
        fake: logits [B] of generated images.
        kind: one of ``LOSSES``, or an installed package's.

    Returns:
        Scalar, the mean over images.

    Raises:
        ValueError: if ``kind`` is unknown.

    Example:
        >>> import torch
        >>> generator_loss(torch.zeros(2))  # log 2
        tensor(0.6931)
    """
    return find_loss(kind).generator(fake)
