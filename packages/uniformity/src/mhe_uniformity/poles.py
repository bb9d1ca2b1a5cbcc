r"""Losses with a learned pole: MHP and MHC.

A pole v plays against the network: it seeks the place of least energy (MHP) or the largest hole
(MHC) among the neurons, and the network brings neurons there. Before each step of the network it
takes ``inner_steps`` steps of SGD with momentum 0.9, at the network's learning rate, and with a
momentum that outlasts the network's steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from mhe_core.autocast import without_autocast
from mhe_core.energy.rows import directions
from torch import Tensor

from mhe_uniformity._base import check_integer, check_neurons, check_number
from mhe_uniformity._rows import released_rows, squared_chords
from mhe_uniformity._state import Seeded

__all__ = ["MHC", "MHP"]

MOMENTUM = 0.9
RELEASED_WEIGHT_DECAY = 5e-4


class Polar(Seeded):
    """What MHP and MHC share: the pole and its steps.

    Attributes:
        poles: buffer ``[1, d]``, the pole.
        momentum: buffer ``[1, d]``, that of its steps.
    """

    published_output_options: ClassVar[dict[str, Any]] = {"half_space": False}

    poles: Tensor
    momentum: Tensor

    def __init__(
        self,
        num_neurons: int,
        dim: int,
        *,
        variant: str = "paper",
        half_space: bool = True,
        inner_steps: int = 10,
        inner_weight: float | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(num_neurons, dim, variant=variant, seed=seed)
        check_integer("inner_steps", inner_steps, 0)
        if inner_weight is None:
            published = self.published_weight if half_space else self.published_output_weight
            inner_weight = 1.0 if published is None else published
        check_number("inner_weight", inner_weight)
        self.half_space = half_space
        self.inner_steps = inner_steps
        self.inner_weight = inner_weight
        poles = torch.randn(1, dim, generator=self.generator(), dtype=torch.float32)
        self.register_buffer("poles", directions(poles) if variant == "paper" else poles)
        self.register_buffer("momentum", torch.zeros_like(poles))

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        return self.of_squared_chords(self.to_pole(self.on_sphere(x), self.poles))

    def on_sphere(self, x: Tensor) -> Tensor:
        """Neurons ``[N, d]`` as the variant normalises them, in at least the poles' dtype."""
        x = x.to(torch.promote_types(x.dtype, self.poles.dtype))
        return directions(x) if self.variant == "paper" else released_rows(x)

    def to_pole(self, u: Tensor, poles: Tensor) -> Tensor:
        """Squared chords from the pole to the neurons, and, in half space, to their antipodes.

        Args:
            u: the neurons ``[N, d]``, on the sphere.
            poles: ``[1, d]``.
        """
        poles = poles.to(u.dtype)
        if self.variant == "paper":
            v = directions(poles)
            chords = [squared_chords(u, v)]
            if self.half_space:
                chords.append(squared_chords(u, -v))
            smallest = torch.finfo(u.dtype).eps
            return torch.cat(chords).clamp_min(smallest)
        pole = poles.squeeze(0)
        pole = pole * (pole.square().sum() + 1e-4).rsqrt()  # once only
        cosines = u @ pole
        return 2 - 2 * (torch.cat([cosines, -cosines]) if self.half_space else cosines)

    def of_squared_chords(self, chords: Tensor) -> Tensor:
        """The network's loss."""
        raise TypeError(f"{type(self).__name__} does not define of_squared_chords(chords)")

    @torch.no_grad()
    def update(self, neurons: Tensor, lr: float) -> None:
        """Let the pole take its steps, before the network's step.

        Args:
            neurons: the layer's neurons ``[..., N, d]``.
            lr: the network's current learning rate.
        """
        check_neurons(neurons, self.dim)
        super().update(neurons, lr)
        self.momentum = self.momentum.to(self.poles.dtype)  # should the poles have been replaced
        with without_autocast(neurons.device):
            x = neurons.detach().to(torch.promote_types(neurons.dtype, torch.float32))
            matrices = [self.on_sphere(matrix) for matrix in x.reshape(-1, *x.shape[-2:])]
            for _ in range(self.inner_steps):
                self._step(matrices, lr)

    def _step(self, matrices: Sequence[Tensor], lr: float) -> None:
        """One step of SGD: of minus the loss, as pole and network play against each other."""
        with torch.enable_grad():
            poles = self.poles.detach().requires_grad_()
            losses = [self.of_squared_chords(self.to_pole(u, poles)) for u in matrices]
            (slope,) = torch.autograd.grad(-self.inner_weight * torch.stack(losses).mean(), poles)
        if self.variant == "released":
            slope = slope + RELEASED_WEIGHT_DECAY * self.poles
        self.momentum.mul_(MOMENTUM).add_(slope)
        self.poles.sub_(lr * self.momentum)
        if self.variant == "paper":
            self.poles.copy_(directions(self.poles))

    def options(self) -> dict[str, Any]:
        """The hyperparameters."""
        names = ("half_space", "inner_steps", "inner_weight", "seed")
        return {**super().options(), **{name: getattr(self, name) for name in names}}


class MHP(Polar):
    r"""Maximum hyperspherical polarization: minus the energy of a pole among the neurons.

    .. math:: -\frac1N \sum_i \frac{1}{\lVert v - u_i \rVert^2}, \qquad
        v = \operatorname{argmin} \sum_i \frac{1}{\lVert v - u_i \rVert^2},

    in half space over the 2N directions :math:`\pm u_i`. The pole v seeks where the neurons leave
    room, the network raises the energy there. Liu et al., *Learning with Hyperspherical
    Uniformity*, AISTATS 2021, arXiv 2103.01649. Published weights: 1 in hidden layers (half
    space), 10 in the output layer (full space).

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"``, with a pole that stays on the sphere and a squared chord that stops at
            the dtype's resolution, or ``"released"``, with the program's 1e-4 under the roots, and
            a pole of any length with weight decay.
        half_space: count every neuron together with its antipode.
        inner_steps: steps of the pole in each update.
        inner_weight: factor of the pole's objective; default: the published weight.
        seed: what the pole is drawn from, see :class:`mhe_uniformity.Seeded`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> regularizer = create_regularizer("mhp", 16, 8, seed=0)
        >>> neurons = torch.randn(16, 8)
        >>> regularizer.update(neurons, lr=0.1)  # once per training step
        >>> regularizer(neurons).shape
        torch.Size([])
    """

    paper = "Liu et al., AISTATS 2021, arXiv 2103.01649"
    published_weight = 1.0
    published_output_weight = 10.0

    def of_squared_chords(self, chords: Tensor) -> Tensor:
        """Minus the Riesz energy with s = 2."""
        return -chords.reciprocal().mean()


class MHC(Polar):
    r"""Minimum hyperspherical covering: squared chord from a pole to the nearest neuron, softly.

    .. math:: -\frac1\gamma \log \frac1N \sum_i e^{-\gamma \lVert v - u_i \rVert^2}

    in half space over the 2N directions :math:`\pm u_i`. The pole v seeks the largest hole, the
    network closes it. Liu et al., *Learning with Hyperspherical Uniformity*, AISTATS 2021, arXiv
    2103.01649. Published weights: 0.01 in hidden layers (half space), 0.1 in the output layer
    (full space).

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"`` or ``"released"``, as in :class:`MHP`.
        half_space: count every neuron together with its antipode.
        gamma: how hard the minimum is, 10 in the program.
        inner_steps: steps of the pole in each update.
        inner_weight: factor of the pole's objective; default: the published weight.
        seed: what the pole is drawn from, see :class:`mhe_uniformity.Seeded`.

    Raises:
        ValueError: if an argument is out of range.
    """

    paper = "Liu et al., AISTATS 2021, arXiv 2103.01649"
    published_weight = 0.01
    published_output_weight = 0.1

    def __init__(
        self,
        num_neurons: int,
        dim: int,
        *,
        variant: str = "paper",
        half_space: bool = True,
        gamma: float = 10.0,
        inner_steps: int = 10,
        inner_weight: float | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            num_neurons, dim, variant=variant, half_space=half_space, inner_steps=inner_steps,
            inner_weight=inner_weight, seed=seed,
        )  # fmt: skip
        check_number("gamma", gamma, positive=True)
        self.gamma = gamma

    def of_squared_chords(self, chords: Tensor) -> Tensor:
        """The soft minimum."""
        soft = torch.logsumexp(-self.gamma * chords, 0) - math.log(len(chords))
        return -soft / self.gamma

    def options(self) -> dict[str, Any]:
        """The hyperparameters."""
        return {**super().options(), "gamma": self.gamma}
