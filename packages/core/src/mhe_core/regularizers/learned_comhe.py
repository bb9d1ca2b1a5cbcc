"""Compressive MHE (CoMHE) with a projection that is trained along with the network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mhe_core.eager import eagerly
from mhe_core.energy import hyperspherical_energy
from mhe_core.energy.conventions import ConventionName
from mhe_core.energy.distances import DistanceName
from mhe_core.energy.functional import asked_once
from mhe_core.regularizers.arguments import check_integer
from mhe_core.regularizers.comhe import CoMHE
from mhe_core.regularizers.projections import (
    angle_objective,
    draw_gaussian_,
    gradient_step,
    project,
)

__all__ = ["AdversarialCoMHE", "AnglePreservingCoMHE"]

# Of a learned projection in the published programs, as a factor of P in its gradient.
RELEASED_WEIGHT_DECAY = 1e-3 * 5e-4


class LearnedCoMHE(CoMHE):
    """What CoMHE with a trained projection shares.

    At each update the projection P takes ``inner_steps`` gradient steps. The energy is that of Q w,
    where Q is P after one further step, which the gradient goes through (a second derivative).
    """

    lr: Tensor
    compiles = False  # forward takes a gradient step that is differentiated again

    def __init__(
        self,
        num_neurons: int,
        dim: int,
        *,
        projection_dim: int = 30,
        inner_steps: int = 1,
        second_order: bool = True,
        half_space: bool = True,
        seed: int | None = None,
        s: float = 2.0,
        distance: DistanceName = "euclidean",
        convention: ConventionName = "paper",
    ) -> None:
        super().__init__(
            num_neurons, dim, s=s, distance=distance, convention=convention,
            half_space=half_space, seed=seed,
        )  # fmt: skip
        check_integer("projection_dim", projection_dim, 1)
        check_integer("inner_steps", inner_steps, 0)
        self.inner_steps = inner_steps
        self.second_order = second_order
        if dim > projection_dim:
            self.projection = torch.empty(projection_dim, dim)
            self.register_buffer("lr", torch.zeros(()))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """As it was made: the first projection, and a learning rate of 0."""
        if self.projection is not None:
            draw_gaussian_(self.projection, self.seed, 0)
            self.lr.zero_()

    # Said again, as a class with a forward of its own is taken to be no bare potential.
    compressed_potential = CoMHE.compressed_potential

    def forward(self, neurons: Tensor, anchors: Tensor | None = None) -> Tensor:
        """Scalar energy of the projected neurons ``[..., N, d]``; the compiler leaves it alone."""
        if torch.compiler.is_compiling():
            return eagerly(LearnedCoMHE.forward, self, neurons, anchors)
        return super().forward(neurons, anchors)

    def update(self, neurons: Tensor, lr: float) -> None:
        """Train the projection for one step, see :class:`CoMHE`; the compiler leaves it alone."""
        if torch.compiler.is_compiling():
            eagerly(LearnedCoMHE.update, self, neurons, lr)
            return
        super().update(neurons, lr)

    def objective(self, neurons: Tensor) -> Callable[[Tensor], Tensor]:
        """What the projection is trained to minimise: a scalar function of P ``[k, d]``."""
        raise TypeError(f"{type(self).__name__} does not define objective(neurons)")

    def compress(self, neurons: Tensor, projection: Tensor) -> Tensor:
        """``[..., N, k]``: Q w, or P w with ``second_order=False``."""
        if not self.second_order:
            return project(self.unprojected(neurons), projection.clone())
        differentiable = torch.is_grad_enabled()
        # The step's gradient is needed also where none is wanted of the result.
        with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
            neurons = self.unprojected(neurons.clone() if neurons.is_inference() else neurons)
            objective = self.objective(without_overflow(neurons))
            # Copies, as the next update, which changes both, may come before the backward pass.
            projection, lr = projection.clone(), self.lr.clone()
            stepped = gradient_step(objective, projection, lr, differentiable=differentiable)
            return project(neurons, stepped)

    def advance(self, neurons: Tensor, projection: Tensor, lr: float) -> None:
        """Take the inner steps, at the learning rate ``lr``, which is kept for forward.

        Where the neurons are not finite, the projection stays as it is.
        """
        self.lr.fill_(lr)
        if self.inner_steps == 0:
            return
        with torch.inference_mode(False), torch.no_grad():  # in which no step has a gradient
            neurons = neurons.clone() if neurons.is_inference() else neurons
            objective = self.objective(self.unprojected(neurons))
            weight_decay = RELEASED_WEIGHT_DECAY if self.convention == "released_code" else 0.0

            def trained() -> Tensor:
                after = projection
                for _ in range(self.inner_steps):
                    after = gradient_step(objective, after, self.lr, weight_decay=weight_decay)
                return after

            after = asked_once([trained])[0]
            projection.copy_(torch.where(after.isfinite().all(), after, projection))


class AnglePreservingCoMHE(LearnedCoMHE):
    r"""Energy after a projection that is trained to preserve the neurons' angles.

    .. math:: E(Q w_1, \dots, Q w_N), \qquad
        Q = \operatorname{argmin}_P \lVert C(P w) - C(w) \rVert_F,

    C the matrix of cosines, E the energy of :func:`mhe_core.hyperspherical_energy`, in half space
    by default. arXiv 1906.04892.

    The projection minimises the Frobenius norm of the change of the neurons' cosines, see
    :func:`mhe_core.regularizers.projections.angle_objective`. It is the buffer ``projection``,
    ``[projection_dim, d]``; where d ≤ projection_dim there is none, and the energy is that of the
    neurons themselves. (Lin et al., CVPR 2020.)

    Each :meth:`update` takes ``inner_steps`` gradient steps at the network's learning rate (with
    ``convention="released_code"`` with the weight decay of the published programs, which is too
    weak to matter otherwise). The energy is that of Q w, where Q is the projection after one
    further step at the rate given to the last update, which the gradient goes through; before the
    first update, that rate is 0.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        projection_dim: k, the dimension projected to.
        inner_steps: gradient steps of the projection at each update; 0: only the differentiated
            one.
        second_order: take and differentiate through the further step; False alternates between
            training the projection and the network (cheaper).
        half_space: count every projected neuron together with its antipode.
        seed: see :class:`CoMHE`; what the initial projection is drawn from.
        s: power of the Riesz potential, a real number ≥ 0.
        distance: ``"euclidean"`` (chord) or ``"angular"`` (radians).
        convention: ``"paper"`` or ``"released_code"``.

    Raises:
        ValueError: if an argument is out of range.
    """

    def objective(self, neurons: Tensor) -> Callable[[Tensor], Tensor]:
        """The change of the cosines."""
        return angle_objective(neurons, self.convention)


class AdversarialCoMHE(LearnedCoMHE):
    r"""Energy after a projection that is trained, as an adversary, to maximise it.

    .. math:: \min_w \max_P E(P w_1, \dots, P w_N)

    Lin et al., CVPR 2020, arXiv 1906.04892.

    The projection ascends the *full-space* energy of the projected neurons, while the network
    descends their half-space energy (with the default ``half_space=True``). All else, arguments
    and errors, is as in :class:`AnglePreservingCoMHE`.
    """

    def __init__(
        self,
        num_neurons: int,
        dim: int,
        *,
        projection_dim: int = 30,
        inner_steps: int = 10,
        second_order: bool = True,
        half_space: bool = True,
        seed: int | None = None,
        s: float = 2.0,
        distance: DistanceName = "euclidean",
        convention: ConventionName = "paper",
    ) -> None:
        super().__init__(
            num_neurons, dim, projection_dim=projection_dim, inner_steps=inner_steps,
            second_order=second_order, half_space=half_space, seed=seed,
            s=s, distance=distance, convention=convention,
        )  # fmt: skip

    def objective(self, neurons: Tensor) -> Callable[[Tensor], Tensor]:
        """Minus the full-space energy of the projected neurons."""
        return lambda projection: (
            -hyperspherical_energy(
                project(neurons, projection),
                s=self.s,
                distance=self.distance,
                convention=self.convention,
            ).mean()
        )


def without_overflow(neurons: Tensor) -> Tensor:
    """The neurons, through which a gradient comes back with 0 for what is not finite.

    The second derivative of the energy of nearly coincident neurons can leave the dtype's range.
    """
    if not neurons.requires_grad:
        return neurons
    neurons = neurons.view_as(neurons)
    neurons.register_hook(lambda g: None if g is None else g.nan_to_num(0.0, 0.0, 0.0))
    return neurons
