"""SphereFace, CosFace and ArcFace as OpenSphere computes them: margins outside the graph.

The label's logit has the value with margin, but the gradient of cos θ without one. Class vectors
are replaced by their directions at each forward, outside the graph, too: their gradient is not
tangential. Program: OpenSphere (Liu et al., commit a679e820). With θ the angle, s the scale:

===================== ======================================= ==================
head                  label's logit / s                        published s, m
===================== ======================================= ==================
opensphere_sphereface (−1)^k cos mθ − 2k, k = ⌊mθ/π⌋           30, 1.7
opensphere_cosface    cos θ − m                                64, 0.35
opensphere_arcface    cos(θ + m), θ + m at most π              64, 0.5
===================== ======================================= ==================
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from sphereface_plus.heads.base import (
    Head,
    at_labels,
    check_range,
    cross_entropy,
    detached,
    with_labels,
)
from sphereface_plus.heads.products import unit_rows

__all__ = ["OpenSphereArcFace", "OpenSphereCosFace", "OpenSphereHead", "OpenSphereSphereFace"]

EDGE = 1e-5  # cosines keep so far from ±1 before arccos
PI = 3.14159  # the program's own


class RenormalizedHead(Head):
    """A head whose class vectors are replaced by their directions at each training batch.

    An energy of the class vectors is to be computed after the head's loss, not before it: torch
    refuses to go back through class vectors that have been replaced meanwhile.
    """

    may_sample_classes = False

    def scaled_cosines(self, features: Tensor, scale: float, largest: float = 1.0) -> Tensor:
        """s·cos θ of features ``[B, d]`` with all class vectors, ``[B, C]``, unclamped.

        The gradient is that of the vectors themselves.
        """
        directions = unit_rows(self.weight.detach())
        if self.training:
            with torch.no_grad():
                self.weight.copy_(directions)
            vectors: Tensor = self.weight
        else:
            vectors = self.weight + (directions - self.weight).detach()
        return (scale * unit_rows(features)) @ vectors.to(features.dtype).mT


class OpenSphereHead(RenormalizedHead):
    """A margin at the label, outside the graph.

    Args:
        dim: d, the dimension of the features.
        num_classes: C, the number of classes.
        m: the margin.
        scale: s.
    """

    def __init__(self, dim: int, num_classes: int, m: float, scale: float) -> None:
        super().__init__(dim, num_classes)
        check_range(type(self).__name__, m=(m, 0, 100), scale=(scale, 1e-6, 1e6))
        self.m, self.scale = m, scale

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy."""
        logits = self.scaled_cosines(features, self.scale)
        own = at_labels(logits, labels)
        hard = self.scale * self.with_margin(own.detach() / self.scale)
        return cross_entropy(with_labels(logits, labels, detached(own, hard)), labels)

    @abstractmethod
    def with_margin(self, cosines: Tensor) -> Tensor:
        """What takes the place of cos θ at the label."""


class OpenSphereSphereFace(OpenSphereHead):
    """SphereFace (Liu et al., CVPR 2017), normalised, by OpenSphere; see the head of this file."""

    def __init__(self, dim: int, num_classes: int, *, m: float = 1.7, scale: float = 30.0) -> None:
        super().__init__(dim, num_classes, m, scale)

    def with_margin(self, cosines: Tensor) -> Tensor:
        """ψ(θ), for any m."""
        return multiplied(angles(cosines), self.m)


class OpenSphereCosFace(OpenSphereHead):
    """CosFace (Wang et al., CVPR 2018) by OpenSphere; see the head of this file."""

    def __init__(self, dim: int, num_classes: int, *, m: float = 0.35, scale: float = 64.0) -> None:
        super().__init__(dim, num_classes, m, scale)

    def with_margin(self, cosines: Tensor) -> Tensor:
        """The cosine less m."""
        return cosines - self.m


class OpenSphereArcFace(OpenSphereHead):
    """ArcFace (Deng et al., CVPR 2019) by OpenSphere; see the head of this file."""

    def __init__(self, dim: int, num_classes: int, *, m: float = 0.5, scale: float = 64.0) -> None:
        super().__init__(dim, num_classes, m, scale)

    def with_margin(self, cosines: Tensor) -> Tensor:
        """cos(θ + m)."""
        return (angles(cosines) + self.m).clamp(EDGE, PI).cos()


def angles(cosines: Tensor) -> Tensor:
    """θ, a little away from 0 and π."""
    return cosines.clamp(-1 + EDGE, 1 - EDGE).acos()


def multiplied(theta: Tensor, m: float) -> Tensor:
    """(−1)^k cos mθ − 2k with k = ⌊mθ/π⌋: falling and continuous for every m."""
    k = (m * theta / math.pi).floor()
    return (1 - 2 * (k % 2)) * (m * theta).cos() - 2 * k
