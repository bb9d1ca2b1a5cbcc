"""The two adversarial losses, on logits: the higher, the more the discriminator believes."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import relu, softplus

__all__ = ["LOSSES", "discriminator_loss", "generator_loss"]

LOSSES = ("non_saturating", "hinge")


def discriminator_loss(real: Tensor, fake: Tensor, kind: str = "non_saturating") -> Tensor:
    """What the discriminator minimises.

    ``non_saturating`` is the cross entropy of Goodfellow et al. (NeurIPS 2014),
    softplus(−real) + softplus(fake); ``hinge`` (Lim and Ye, 2017) is
    max(0, 1 − real) + max(0, 1 + fake).

    Args:
        real: logits [B] of real images.
        fake: logits [B'] of generated images.
        kind: one of ``LOSSES``.

    Returns:
        Scalar, the mean over images.

    Raises:
        ValueError: if ``kind`` is unknown.

    Example:
        >>> import torch
        >>> discriminator_loss(torch.zeros(2), torch.zeros(2))  # no idea: 2 log 2
        tensor(1.3863)
    """
    check(kind)
    if kind == "hinge":
        return relu(1 - real).mean() + relu(1 + fake).mean()
    return softplus(-real).mean() + softplus(fake).mean()


def generator_loss(fake: Tensor, kind: str = "non_saturating") -> Tensor:
    """What the generator minimises: softplus(−fake), or −fake for ``hinge``.

    Args:
        fake: logits [B] of generated images.
        kind: one of ``LOSSES``.

    Returns:
        Scalar, the mean over images.

    Raises:
        ValueError: if ``kind`` is unknown.

    Example:
        >>> import torch
        >>> generator_loss(torch.zeros(2))  # log 2
        tensor(0.6931)
    """
    check(kind)
    return -fake.mean() if kind == "hinge" else softplus(-fake).mean()


def check(kind: str) -> None:
    """Raise a ValueError that names the losses there are."""
    if kind not in LOSSES:
        raise ValueError(f"expected the loss to be one of {LOSSES}, got {kind!r}")
