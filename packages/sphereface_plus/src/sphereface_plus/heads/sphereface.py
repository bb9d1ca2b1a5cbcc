r"""The angular-margin head: class vectors on the unit sphere, and a margin at the label.

With θ the angle between a feature x and its label's class vector, every variant makes the label's
logit harder to reach, by a function of θ that replaces cos θ:

============== ============================================== =====================================
variant        label's logit                                  source
============== ============================================== =====================================
a_softmax      ‖x‖ · (λ cos θ + ψ(θ)) / (1 + λ)               SphereFace (Liu et al., CVPR 2017)
sphereface_r   s · (cos θ + sg(ψ(θ) − cos θ))                 SphereFace-R, v1 (Liu et al., 2021)
cosface        s · (cos θ − m)                                CosFace (Wang et al., CVPR 2018)
arcface        s · cos(θ + m)                                 ArcFace (Deng et al., CVPR 2019)
softmax        x · w, and w not normalised                    the baseline without a margin
============== ============================================== =====================================

Here :math:`\psi(\theta) = (-1)^k \cos m\theta - 2k` for θ in [kπ/m, (k+1)π/m], and sg stops the
gradient. The other logits are ‖x‖ cos θ for ``a_softmax``, s · cos θ for the normalised variants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from mhe_core.autocast import without_autocast
from mhe_core.errors import UserError
from torch import Tensor

from sphereface_plus.heads.base import (
    Head,
    add_margin_or_line,
    at_labels,
    check_batch,
    cross_entropy,
    with_labels,
)
from sphereface_plus.heads.products import products_with_directions, unit_rows

__all__ = ["Annealing", "SphereFaceHead", "psi"]

# Published margins: the default of each variant, and the range in which it has a meaning.
MARGINS: dict[str, float] = {
    "a_softmax": 4,
    "sphereface_r": 1.5,
    "cosface": 0.35,
    "arcface": 0.5,
    "softmax": 1,
}
RANGES: dict[str, tuple[float, float]] = {
    "a_softmax": (1, math.inf),
    "sphereface_r": (1, math.inf),
    "cosface": (0, 2),
    "arcface": (0, math.pi / 2),
    "softmax": (-math.inf, math.inf),
}


@dataclass(frozen=True)
class Annealing:
    """The schedule of A-Softmax's λ: ``max(minimum, base · (1 + gamma · t) ** −power)``.

    As in the published program, t counts from 1: the first step's λ is 892.857. A large λ is a
    softmax without margin, from which training starts; the margin comes in as λ falls. The defaults
    are those of SphereFace's published solver file.

    Example:
        >>> schedule = Annealing()
        >>> [round(schedule(torch.tensor(t)).item(), 1) for t in (0, 100, 10000)]
        [1000.0, 76.9, 5.0]
    """

    base: float = 1000.0
    gamma: float = 0.12
    power: float = 1.0
    minimum: float = 5.0

    def __post_init__(self) -> None:
        for name in ("base", "gamma", "power", "minimum"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"expected the annealing's {name} as a finite number ≥ 0, "
                    f"got {getattr(self, name)}"
                )

    def __call__(self, iteration: Tensor) -> Tensor:
        """λ at an iteration, as a tensor on the same device."""
        return (self.base * (1 + self.gamma * iteration) ** -self.power).clamp_min(self.minimum)


def psi(cosines: Tensor, m: float) -> Tensor:
    r"""ψ(θ) = (−1)^k cos(mθ) − 2k of SphereFace (Liu et al., CVPR 2017, eq. 7), given cos θ.

    Continuous and falling on [0, π], from 1 to 1 − 2m for a whole m. For a whole m the gradient is
    that of a Chebyshev polynomial in cos θ, exact and finite at θ = 0 and π too; for any other m,
    cos(mθ) has no finite gradient in cos θ at these ends, and none is kept.

    Args:
        cosines: cos θ, any shape, floating point; beyond [−1, 1] by rounding at most.
        m: the margin, ≥ 1.

    Returns:
        ψ(θ), of the shape and dtype of ``cosines``.

    Example:
        >>> psi(torch.tensor([1.0, 0.0, -1.0]), m=2)
        tensor([ 1., -1., -3.])
    """
    # k is the number of the angles π/m, 2π/m, … < π that θ has passed.
    k = torch.zeros_like(cosines, requires_grad=False)
    for i in range(1, math.ceil(m)):
        k += cosines.detach() <= math.cos(i * math.pi / m)
    sign = 1 - 2 * (k % 2)
    if float(m).is_integer():
        cos_m_theta = chebyshev(cosines, int(m))
    else:
        cos_m_theta = torch.cos(m * torch.acos(cosines.detach().clamp(-1, 1)))
    return sign * cos_m_theta - 2 * k


def chebyshev(x: Tensor, degree: int) -> Tensor:
    """T_degree(x), the polynomial with T(cos θ) = cos(degree · θ), by its recurrence."""
    before, current = torch.ones_like(x), x
    for _ in range(degree - 1):
        before, current = current, 2 * x * current - before
    return current


class SphereFaceHead(Head):
    """Class vectors with an angular margin; calling it gives the loss of a batch.

    Args:
        dim: d, the dimension of the features.
        num_classes: C, the number of classes.
        m: the margin; default: the published one of the variant (4 for ``a_softmax``, 1.5 for
            ``sphereface_r``, 0.35 for ``cosface``, 0.5 for ``arcface``; ``softmax`` has none).
        variant: ``"a_softmax"``, ``"sphereface_r"``, ``"cosface"``, ``"arcface"`` or ``"softmax"``
            (see the head of this file).
        scale: s of the normalised variants; published: 30 (64 for a large set).
        annealing: the schedule of λ, for ``a_softmax``.

    Attributes:
        weight: the class vectors, ``[C, d]``.
        iteration: how many batches the head has been trained on, a buffer, so that λ resumes.

    Raises:
        ValueError: if a size is not positive, the variant unknown, or m or scale out of range.

    Example:
        >>> head = SphereFaceHead(dim=8, num_classes=5)
        >>> features, labels = torch.randn(3, 8), torch.tensor([0, 1, 4])
        >>> head.logits(features, labels, lam=5.0).shape
        torch.Size([3, 5])
        >>> head(features, labels).shape
        torch.Size([])
    """

    iteration: Tensor

    def __init__(
        self,
        dim: int,
        num_classes: int,
        m: float | None = None,
        variant: str = "a_softmax",
        scale: float = 30.0,
        annealing: Annealing | None = None,
    ) -> None:
        super().__init__(dim, num_classes)
        self.m = check_margin(m, variant)
        self.variant = variant
        if not 0 < scale < math.inf:
            raise UserError(f"expected scale as a positive number, got {scale!r}")
        self.scale = scale
        self.annealing = annealing or Annealing()
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy; in training mode it counts the iteration, by which λ falls."""
        loss = cross_entropy(self.margin_logits(features, labels), labels)
        if self.training:
            self.iteration += 1
        return loss

    def logits(self, features: Tensor, labels: Tensor, lam: float | Tensor | None = None) -> Tensor:
        """Logits ``[B, C]`` with the margin at each label.

        Args:
            features: ``[B, d]``, floating point; computed in float32 at least, under autocast too.
            labels: ``[B]``, int64.
            lam: λ, which is ``a_softmax``'s alone; default: the schedule's at this iteration.

        Raises:
            ValueError: if the shapes do not fit, or a label is not a class.
        """
        check_batch(features, labels, self.dim, self.num_classes)
        return self.margin_logits(features, labels, lam)

    def margin_logits(
        self,
        features: Tensor,
        labels: Tensor,
        lam: float | Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """What :meth:`logits` does once its arguments are checked; label −1 has no margin.

        With ``weight``, of these class vectors in place of all.
        """
        with without_autocast(features.device):
            x = features.to(torch.promote_types(features.dtype, torch.float32))
            weight = (self.weight if weight is None else weight).to(x.dtype)
            if self.variant == "softmax":
                return x @ weight.mT
            own_lengths = self.variant == "a_softmax"
            scale = 1.0 if own_lengths else self.scale
            # Scaled before the product, which has more entries than the features.
            logits = products_with_directions(scale * unit_rows(x), weight)
            columns = labels.clamp_min(0)
            own = at_labels(logits, columns)
            hard = scale * self._with_margin(own / scale, lam)
            logits = with_labels(logits, columns, torch.where(labels[:, None] < 0, own, hard))
            if own_lengths:
                return torch.linalg.vector_norm(x, dim=-1, keepdim=True) * logits
            return logits

    def _with_margin(self, cosines: Tensor, lam: float | Tensor | None) -> Tensor:
        """What takes the place of cos θ at the label."""
        m = self.m
        if self.variant == "a_softmax":
            lam = self.annealing(self.iteration + 1) if lam is None else lam
            return (lam * cosines + psi(cosines, m)) / (1 + lam)
        if self.variant == "sphereface_r":
            return cosines + (psi(cosines, m) - cosines).detach()
        if self.variant == "cosface":
            return cosines - m
        # As published: where θ + m passes π, a line that goes on falling from cos m + m sin m − 1
        # lower, 0.117 for m = 0.5.
        return add_margin_or_line(cosines, m)


def check_margin(m: float | None, variant: str) -> float:
    """The margin, or the variant's published one; a ValueError if it makes no sense."""
    if variant not in MARGINS:
        raise UserError(f"expected variant to be one of {tuple(MARGINS)}, got {variant!r}")
    if m is None:
        return MARGINS[variant]
    low, high = RANGES[variant]
    if isinstance(m, bool) or not isinstance(m, (int, float)) or not low <= m <= high:
        raise UserError(f"expected the margin m of {variant} in [{low}, {high:.4g}], got {m!r}")
    if math.isinf(m) or (variant == "a_softmax" and not float(m).is_integer()):
        raise UserError(f"expected the margin m of {variant} as a whole number, got {m!r}")
    return m


# The variants by name, as entry points.
a_softmax, cosface, arcface, softmax = (
    partial(SphereFaceHead, variant=name) for name in ("a_softmax", "cosface", "arcface", "softmax")
)
