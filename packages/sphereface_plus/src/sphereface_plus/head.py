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
from numbers import Integral

import torch
from mhe_core.errors import UserError
from torch import Tensor, nn
from torch.nn import functional

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


class SphereFaceHead(nn.Module):
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
        super().__init__()
        for name, value in (("dim", dim), ("num_classes", num_classes)):
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise UserError(f"expected {name} as a positive integer, got {value!r}")
        self.dim, self.num_classes = dim, num_classes = int(dim), int(num_classes)
        self.m = check_margin(m, variant)
        self.variant = variant
        if not 0 < scale < math.inf:
            raise UserError(f"expected scale as a positive number, got {scale!r}")
        self.scale = scale
        self.annealing = annealing or Annealing()
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(num_classes, dim)))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of the features ``[B, d]`` with labels ``[B]``, int64.

        In training mode it counts the iteration, by which λ falls.
        """
        loss = functional.cross_entropy(self.logits(features, labels), labels)
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
        self, features: Tensor, labels: Tensor, lam: float | Tensor | None = None
    ) -> Tensor:
        """What :meth:`logits` does once its arguments are checked; label −1 has no margin."""
        with torch.autocast(features.device.type, enabled=False):
            x = features.to(torch.promote_types(features.dtype, torch.float32))
            weight = self.weight.to(x.dtype)
            if self.variant == "softmax":
                return x @ weight.mT
            if self.variant == "a_softmax":
                lengths = x.norm(dim=-1, keepdim=True)
            else:
                x, lengths = unit_rows(x), self.scale * x.new_ones(len(x), 1)
                x = self.scale * x
            logits = x @ unit_rows(weight).mT
            columns = labels.clamp_min(0).unsqueeze(1)
            at_label = logits.gather(1, columns)
            hard = lengths * self._with_margin(at_label / lengths.clamp_min(1e-12), lam)
            return logits.scatter(1, columns, torch.where(labels[:, None] < 0, at_label, hard))

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
        # arcface: cos(θ + m), and where θ + m passes π, as published, a line that goes on falling
        # from cos m + m sin m − 1 lower: 0.117 for m = 0.5.
        sines = (1 - cosines.square()).clamp_min(torch.finfo(cosines.dtype).eps).sqrt()
        beyond = cosines < math.cos(math.pi - m)
        return torch.where(
            beyond,
            cosines - m * math.sin(m),
            cosines * math.cos(m) - sines * math.sin(m),
        )

    def extra_repr(self) -> str:
        """The sizes and options, for ``print(module)``."""
        return (
            f"dim={self.dim}, num_classes={self.num_classes}, m={self.m}, "
            f"variant={self.variant!r}, scale={self.scale}"
        )


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length 1; zero rows stay zero, and pass gradients on as they come."""
    lengths = x.norm(dim=-1, keepdim=True)
    return x / torch.where(lengths > 0, lengths, 1.0)


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
