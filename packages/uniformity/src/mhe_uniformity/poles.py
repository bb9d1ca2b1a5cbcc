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
from mhe_core.energy.rows import directions, wide_dtype
from mhe_core.regularizers.arguments import check_integer, check_number
from torch import Tensor

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
        self.register_buffer("poles", torch.empty(1, dim, dtype=torch.float32))
        self.register_buffer("momentum", torch.empty(1, dim, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the first pole, and set its momentum to 0."""
        drawn = torch.randn(self.poles.shape, generator=self.generator(), device="cpu")
        self.poles.copy_(directions(drawn) if self.variant == "paper" else drawn)
        self.momentum.zero_()

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        x = x.to(torch.promote_types(x.dtype, self.poles.dtype))
        u, v = self.on_sphere(x), self.pole_on_sphere(self.poles.to(x.dtype))
        if self.variant == "released":
            return self.of_squared_chords(self.by_cosines(u @ v))
        chords = [squared_chords(u, v), *([squared_chords(u, -v)] if self.half_space else [])]
        return self.of_squared_chords(torch.cat(chords).clamp_min(torch.finfo(x.dtype).eps))

    def on_sphere(self, x: Tensor) -> Tensor:
        """Neurons ``[N, d]`` as the variant normalises them."""
        return directions(x) if self.variant == "paper" else released_rows(x)

    def pole_on_sphere(self, poles: Tensor) -> Tensor:
        """The pole ``[d]``; a program normalises it once only."""
        if self.variant == "paper":
            return directions(poles).squeeze(0)
        return (poles * (poles.square().sum() + 1e-4).rsqrt()).squeeze(0)

    def by_cosines(self, cosines: Tensor) -> Tensor:
        """Squared chords from the pole to the neurons, and, in half space, to their antipodes."""
        return 2 - 2 * (torch.cat([cosines, -cosines]) if self.half_space else cosines)

    def of_squared_chords(self, chords: Tensor) -> Tensor:
        """The network's loss."""
        raise TypeError(f"{type(self).__name__} does not define of_squared_chords(chords)")

    def update(self, neurons: Tensor, lr: float) -> None:
        """Let the pole take its steps, before the network's step.

        Args:
            neurons: the layer's neurons ``[..., N, d]``.
            lr: the network's current learning rate.
        """
        super().update(neurons, lr)
        self.momentum = self.momentum.to(self.poles.dtype)  # should the poles have been replaced
        # Outside inference mode, in which no step has a gradient, whoever calls it there.
        with torch.inference_mode(False), torch.no_grad(), without_autocast(neurons.device):
            x = neurons.clone() if neurons.is_inference() else neurons.detach()
            dtype = torch.promote_types(x.dtype, self.poles.dtype)
            resolution = torch.finfo(dtype).eps
            # Cosines cost a third of the differences that the paper's loss is measured by, and in
            # float64 have its digits, too. The program's own loss is of cosines as they come.
            x = x.to(wide_dtype(x.device) if self.variant == "paper" else dtype)
            matrices = [self.on_sphere(matrix) for matrix in x.reshape(-1, *x.shape[-2:])]
            for _ in range(self.inner_steps):
                self._step(matrices, lr, resolution)

    def _step(self, matrices: Sequence[Tensor], lr: float, resolution: float) -> None:
        """One step of SGD: of minus the loss, as pole and network play against each other.

        Where the neurons are not finite, the pole stays where it is.
        """
        with torch.enable_grad():
            poles = self.poles.detach().requires_grad_()
            v = self.pole_on_sphere(poles.to(matrices[0].dtype))
            chords = [self.by_cosines(u @ v) for u in matrices]
            if self.variant == "paper":
                chords = [each.clamp_min(resolution) for each in chords]
            losses = torch.stack([self.of_squared_chords(each) for each in chords])
            (slope,) = torch.autograd.grad(-self.inner_weight * losses.mean(), poles)
        if self.variant == "released":
            slope = slope + RELEASED_WEIGHT_DECAY * self.poles
        momentum = MOMENTUM * self.momentum + slope
        moved = self.poles - lr * momentum
        if self.variant == "paper":
            moved = directions(moved)
        finite = moved.isfinite().all()
        self.momentum.copy_(torch.where(finite, momentum, self.momentum))
        self.poles.copy_(torch.where(finite, moved, self.poles))

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
