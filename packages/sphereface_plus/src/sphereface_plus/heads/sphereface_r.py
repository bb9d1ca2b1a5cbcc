"""SphereFace-R (Liu et al., TPAMI 2022, arXiv 2109.05565), as OpenSphere's earlier program has it.

Loss: w/s times the cross entropy of logits s·f(θ), where f is, by version,

======= =============================== ==============
version at the label                    elsewhere
======= =============================== ==============
v0      (−1)^k cos mθ − 2k, k = ⌊mθ/π⌋  cos θ
v1      cos(min(mθ, π))                 cos θ
v2      cos θ                           cos(θ/m)
======= =============================== ==============

Margins are outside the graph, and so is the replacement of class vectors by their directions.
With soft feature normalisation the logits are ‖x‖·f(θ), and t · mean |‖x‖ − s| is added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mhe_core.errors import UserError
from torch import Tensor

from sphereface_plus.heads.base import (
    at_labels,
    check_range,
    cross_entropy,
    detached,
    with_labels,
)
from sphereface_plus.heads.opensphere import PI, RenormalizedHead, angles, multiplied

__all__ = ["SphereFaceR"]

MARGINS = {"v0": 1.5, "v1": 1.5, "v2": 1.4}  # published with s = 30; v2 with s = 60


class SphereFaceR(RenormalizedHead):
    """SphereFace-R; formulas at the head of this file.

    Args:
        dim: d, the dimension of the features.
        num_classes: C, the number of classes.
        m: the margin, ≥ 1; default: 1.5, for v2 1.4.
        scale: s; default: 30, for v2 60, as published.
        version: ``"v0"``, ``"v1"`` or ``"v2"``.
        features: ``"hard"``: normalised to length s, or ``"soft"``: only drawn to it.
        loss_weight: w, of the cross entropy.
        length_weight: t, of what draws soft features' lengths to s.
        milestones: batches, counted from 0, from which on the margin is larger, in equal parts
            from 1 on to m; default: it is m from the start.

    Attributes:
        iteration: how many batches the head has been trained on, a buffer.

    Raises:
        ValueError: for an option that is none of these or out of range.

    Example:
        >>> head = SphereFaceR(dim=8, num_classes=5, version="v2")
        >>> head(torch.randn(3, 8), torch.tensor([0, 1, 4])).shape
        torch.Size([])
    """

    iteration: Tensor

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        m: float | None = None,
        scale: float | None = None,
        version: str = "v2",
        features: str = "hard",
        loss_weight: float = 50.0,
        length_weight: float = 0.01,
        milestones: Sequence[int] = (),
    ) -> None:
        super().__init__(dim, num_classes)
        if version not in MARGINS or features not in ("hard", "soft"):
            raise UserError(
                f"expected version of {tuple(MARGINS)} and features of ('hard', 'soft'), "
                f"got {version!r} and {features!r}"
            )
        self.m = MARGINS[version] if m is None else m
        self.scale = (60.0 if version == "v2" else 30.0) if scale is None else scale
        self.version, self.features = version, features
        self.loss_weight, self.length_weight = loss_weight, length_weight
        self.milestones = tuple(milestones)
        check_range(
            "sphereface_r",
            m=(self.m, 1, 100),
            scale=(self.scale, 1e-6, 1e6),
            loss_weight=(loss_weight, 0, 1e6),
            length_weight=(length_weight, 0, 1e6),
        )
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))

    def margin(self) -> float:
        """The margin at this iteration."""
        if not self.milestones:
            return self.m
        passed = sum(int(self.iteration) >= milestone for milestone in self.milestones)
        return 1 + (self.m - 1) * passed / len(self.milestones)

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """The weighted cross entropy, and with soft features what draws their lengths to s."""
        cosines = self.scaled_cosines(features, 1.0)
        logits = self.with_margin(cosines, labels)
        weight = self.loss_weight / self.scale
        if self.features == "hard":
            loss = weight * cross_entropy(self.scale * logits, labels)
        else:
            lengths = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
            loss = weight * cross_entropy(lengths * logits, labels)
            loss = loss + self.length_weight * (lengths - self.scale).abs().mean()
        if self.training:
            self.iteration += 1
        return loss

    def with_margin(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """f(θ) of all classes, ``[B, C]``."""
        m, theta = self.margin(), angles(cosines.detach())
        if self.version == "v2":
            values = with_labels((theta / m).cos(), labels, at_labels(theta, labels).cos())
            return detached(cosines, values)
        own = at_labels(theta, labels)
        hard = multiplied(own, m) if self.version == "v0" else (m * own).clamp_max(PI).cos()
        return with_labels(cosines, labels, detached(at_labels(cosines, labels), hard))
