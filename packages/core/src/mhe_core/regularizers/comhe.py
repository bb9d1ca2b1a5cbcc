"""Compressive MHE (CoMHE): the energy of projected neurons, as regularizers.

Those whose projection is trained are in :mod:`mhe_core.regularizers.learned_comhe`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from mhe_core.autocast import without_autocast
from mhe_core.eager import opaque_operator
from mhe_core.energy.conventions import ConventionName
from mhe_core.energy.distances import DistanceName
from mhe_core.energy.potential import Potential, Riesz
from mhe_core.energy.rows import known_in_range, working_copy
from mhe_core.regularizers.arguments import check_integer, check_rate, check_seed
from mhe_core.regularizers.mhe import MHE
from mhe_core.regularizers.projections import dimension_groups, draw_gaussian_, project, select

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["CoMHE", "GroupCoMHE", "RandomCoMHE"]

USUAL_NORMS = 1e-10, 1e10  # of neurons whose projections can do without a factor
LONG = 1e6  # entries of neurons whose smoothed norm is their norm to rounding
FORWARDS_WITHOUT_UPDATE = 5  # before a warning

Self = TypeVar("Self", bound="CoMHE")


class CoMHE(MHE):
    """What the compressive regularizers share: the energy of what :meth:`compress` returns.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        s: power of the Riesz potential, a real number ≥ 0.
        distance: ``"euclidean"`` (chord) or ``"angular"`` (radians).
        convention: ``"paper"`` or ``"released_code"``.
        half_space: count every projected neuron together with its antipode.
        seed: what the projection is drawn from, from 0 to 2⁶³ − 1: layers of equal dimension that
            are given the same seed share their random or group projections, and learned ones start
            from the same. None draws a seed from torch's global generator, so that each layer has
            a projection of its own; in a distributed run, the first :meth:`update` then takes
            the projection of rank 0, so that it must be called on all ranks (see :meth:`agree`).

    Raises:
        ValueError: if an argument is out of range.
    """

    projection: Tensor | None
    needs_update = True
    paper = "Lin et al., CVPR 2020, arXiv 1906.04892"
    published_output_weight = None  # the published program has full-space energy there

    def __init__(
        self,
        num_neurons: int,
        dim: int,
        *,
        s: float = 2.0,
        distance: DistanceName = "euclidean",
        convention: ConventionName = "paper",
        half_space: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__(num_neurons, dim, s=s, distance=distance, convention=convention)
        check_seed(seed)
        self.half_space = half_space
        self.seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
        self._ranks_agree = seed is not None
        self._forwards: int | None = 0  # without an update; None from the first one on
        self.register_buffer("projection", None)

    def forward(self, neurons: Tensor, anchors: Tensor | None = None) -> Tensor:
        """Scalar energy of the projected neurons, the mean over projections and leading dimensions.

        Args:
            neurons: ``[..., N, d]``.
            anchors: indices ``[M]``: the energy of these neurons against all others.
        """
        return super().forward(self.compressed(neurons), anchors)

    def compressed(self, neurons: Tensor) -> Tensor:
        """What the energy is that of: :meth:`compress` with the present projection, if any."""
        if self.projection is None:
            return neurons
        self.check_dim(neurons)
        if not torch.compiler.is_compiling():
            self._warn_if_never_updated()
        with without_autocast(neurons.device):
            return self.compress(neurons, self.projection)

    @property
    def compressed_potential(self) -> Potential | None:  # type: ignore[override]
        """Riesz's, where there is a projection."""
        if self.projection is None:
            return None
        return Riesz(self.s, self.distance, self.convention)

    @property
    def compressed_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(k,), or (P, k) of several projections."""
        return () if self.projection is None else tuple(self.projection.shape[:-1])

    def _warn_if_never_updated(self) -> None:
        """Once, where training goes on without :meth:`update`, which no value would show."""
        if self._forwards is None or not self.needs_update or not torch.is_grad_enabled():
            return
        self._forwards += 1
        if self._forwards == FORWARDS_WITHOUT_UPDATE:
            self._forwards = None
            warnings.warn(
                f"{type(self).__name__} was called {FORWARDS_WITHOUT_UPDATE} times and never "
                "updated, so that its projection stays the first: call update once per training "
                "step, before forward",
                stacklevel=4,
            )

    def compress(self, neurons: Tensor, projection: Tensor) -> Tensor:
        """Neurons ``[..., N, d]`` to ``[..., N, k]`` or ``[..., P, N, k]``, at least float32."""
        raise TypeError(f"{type(self).__name__} does not define compress(neurons, projection)")

    def update(self, neurons: Tensor, lr: float) -> None:
        """Advance the projection by one training step, before the step's forward.

        Args:
            neurons: the layer's neurons ``[..., N, d]``.
            lr: the network's current learning rate.

        Raises:
            ValueError: if the neurons are not of the regularizer's dimension, or ``lr`` is not a
                finite number ≥ 0.
        """
        if not torch.compiler.is_compiling():
            check_rate(lr)
            self._forwards = None
        if self.projection is None:
            return
        self.check_dim(neurons)
        self.agree()
        with without_autocast(neurons.device):
            self.advance(working_copy(neurons.detach()), self.projection, lr)

    def reset_parameters(self) -> None:
        """Make the state what it was when the regularizer was made."""

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What was made on the meta device has its state as soon as it has memory."""
        before = self.projection
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = self.projection
        if before is not None and after is not None and before.is_meta and not after.is_meta:
            self.reset_parameters()
        return self

    def advance(self, neurons: Tensor, projection: Tensor, lr: float) -> None:
        """What :meth:`update` does to the projection, in place; by default nothing."""

    def agree(self, group: ProcessGroup | None = None, *, alone: bool = False) -> None:
        """Take the seed and projection of the group's first process, if they are not common yet.

        The first :meth:`update` does so in the group of all processes.

        Args:
            group: the processes that train this layer; by default all.
            alone: this process trains it without others, and takes nothing.
        """
        if self._ranks_agree or self.projection is None:
            return
        self._ranks_agree = True
        if alone or not (dist.is_available() and dist.is_initialized()):
            return
        first = dist.get_global_rank(group, 0) if group is not None else 0
        seed = torch.tensor(self.seed, device=self.projection.device)
        dist.broadcast(seed, first, group=group)
        dist.broadcast(self.projection, first, group=group)
        self.seed = int(seed)

    def unprojected(self, neurons: Tensor) -> Tensor:
        """The neurons, with norms at which a projection neither overflows nor vanishes.

        By the definition norms do not count; the published programs' smoothing of norms makes no
        difference to long neurons. So the factor counts as a constant. Where all norms are usual,
        and that can be known at once, there is none: it would be a copy of the neurons.
        """
        wide = neurons.dtype in (torch.float32, torch.float64)  # others' range is small
        if wide and known_in_range(neurons, *USUAL_NORMS):
            return neurons
        neurons = working_copy(neurons)
        largest = neurons.detach().abs().amax(-1, keepdim=True)
        if self.convention == "paper":
            return neurons / largest.masked_fill(largest == 0, 1.0)
        return neurons / (largest / LONG).clamp_min(1.0)

    def check_dim(self, neurons: Tensor) -> None:
        """Raise a ValueError if the neurons are not of the dimension that is projected."""
        if neurons.ndim < 2 or neurons.shape[-1] != self.dim:
            raise ValueError(
                f"expected neurons as rows, [..., N, {self.dim}], got {list(neurons.shape)}"
            )


class RandomCoMHE(CoMHE):
    r"""Mean energy over random Gaussian projections (Lin et al., CVPR 2020).

    .. math:: \frac1P \sum_{p=1}^P E(Q_p w_1, \dots, Q_p w_N), \qquad
        Q_p \in \mathbb{R}^{k \times d},

    E the energy of :func:`mhe_core.hyperspherical_energy`, in half space by default. arXiv
    1906.04892.

    The projections are redrawn every ``redraw_interval`` updates, as a pure function of the seed
    and the number of redraws (and, but for the first, the type of the device). These are in the
    state dict; the projections ``projection``, ``[num_projections, projection_dim, d]``, are not,
    nor are they a buffer that DistributedDataParallel would broadcast. Where d ≤ projection_dim
    there is none, and the energy is that of the neurons themselves.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        projection_dim: k, the dimension projected to.
        num_projections: P, the number of projections whose energies are averaged.
        redraw_interval: updates between redraws; 0: never.
        half_space: count every projected neuron together with its antipode.
        seed: see :class:`CoMHE`; layers of equal dimension with the same seed share projections.
        s: power of the Riesz potential, a real number ≥ 0.
        distance: ``"euclidean"`` (chord) or ``"angular"`` (radians).
        convention: ``"paper"`` or ``"released_code"``.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> energy = create_regularizer("comhe_random", 16, 100, projection_dim=10, seed=0)
        >>> energy.projection.shape
        torch.Size([20, 10, 100])
        >>> neurons = torch.randn(16, 100)
        >>> energy.update(neurons, lr=0.1)  # once per training step: draws new projections
        >>> energy(neurons).shape
        torch.Size([])
    """

    def __init__(
        self,
        num_neurons: int,
        dim: int,
        *,
        projection_dim: int = 30,
        num_projections: int = 20,
        redraw_interval: int = 1,
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
        check_integer("num_projections", num_projections, 1)
        check_integer("redraw_interval", redraw_interval, 0)
        self.redraw_interval = redraw_interval
        self.needs_update = redraw_interval > 0
        # On the CPU wherever the projection is, so that reading it stalls no accelerator; and a
        # tensor, as a compiled program would be compiled again for each value of a number.
        self._updates = torch.zeros((), dtype=torch.int64, device="cpu")
        del self.projection  # from here on no buffer: a function of seed and count is not saved
        self.projection = None
        if dim > projection_dim:
            self.projection = self._first(torch.empty(num_projections, projection_dim, dim))

    @property
    def updates(self) -> int:
        """How often it was updated."""
        return int(self._updates)

    def compress(self, neurons: Tensor, projection: Tensor) -> Tensor:
        """``[..., P, N, k]``."""
        return project(self.unprojected(neurons), projection)

    def advance(self, neurons: Tensor, projection: Tensor, lr: float) -> None:
        """Redraw every ``redraw_interval`` updates."""
        if torch.compiler.is_compiling():
            _compiled_redraw(projection, self._updates, self.seed, self.redraw_interval)
            return
        self._updates.add_(1)
        updates = self.updates
        if self.redraw_interval and updates % self.redraw_interval == 0:
            with torch.inference_mode(False):  # not in place: a graph may still need the last ones
                self.projection = torch.empty_like(projection)
            draw_gaussian_(self.projection, self.seed, updates // self.redraw_interval)

    def _first(self, like: Tensor) -> Tensor:
        """The projection before the first redraw: on every device that of the CPU."""
        if like.is_meta:
            return like
        drawn = torch.empty(like.shape, dtype=torch.float32, device="cpu")
        return draw_gaussian_(drawn, self.seed, 0).to(like)

    def _draw_again(self) -> None:
        """The projection of this seed and number of updates."""
        if self.projection is None:
            return
        count = self.updates // self.redraw_interval if self.redraw_interval else 0
        if count == 0:
            self.projection = self._first(self.projection)
        else:
            draw_gaussian_(self.projection, self.seed, count)

    def reset_parameters(self) -> None:
        """As it was made: no update, and the first projection."""
        self._updates.zero_()
        self._draw_again()

    def _apply(
        self: RandomSelf, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> RandomSelf:
        """Move the projection along; those that a device drew, the other draws for itself."""
        super()._apply(fn, recurse)
        if self.projection is not None:
            before = self.projection.device
            self.projection = fn(self.projection)
            after = self.projection.device
            if before.type == "meta" or (before.type != after.type and self.updates):
                self._draw_again()
        return self

    def get_extra_state(self) -> Tensor:
        """Seed and number of updates, for the state dict: all that the projection depends on."""
        return torch.tensor([self.seed, self.updates])

    def set_extra_state(self, state: Tensor) -> None:
        """Continue from a state dict."""
        self.seed, updates = state.tolist()
        self._updates.fill_(updates)
        self._draw_again()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """State dicts of version 0.1 have the projection itself, too."""
        state_dict.pop(f"{prefix}projection", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)


RandomSelf = TypeVar("RandomSelf", bound=RandomCoMHE)


@opaque_operator(
    "mhe_core::redraw",
    "(Tensor(a!) projection, Tensor(b!) updates, int seed, int interval) -> ()",
    changes=("projection", "updates"),
)
def _compiled_redraw(projection: Tensor, updates: Tensor, seed: int, interval: int) -> None:
    """Count an update and, every ``interval`` of them, fill the projection anew."""
    updates.add_(1)
    count = int(updates)
    if interval and count % interval == 0:
        draw_gaussian_(projection, seed, count // interval)


@_compiled_redraw.register_fake
def _(projection: Tensor, updates: Tensor, seed: int, interval: int) -> None:
    return None


class GroupCoMHE(CoMHE):
    r"""Mean energy over groups of dimensions (Lin et al., CVPR 2020).

    .. math:: \frac{1}{|G|} \sum_{g \in G} E(w_{1,g}, \dots, w_{N,g}),

    :math:`w_{i,g}` the components of a neuron in group g, E the energy of
    :func:`mhe_core.hyperspherical_energy`, in half space by default. arXiv 1906.04892.

    The d dimensions are split at random into groups, once; the energies of the neurons' sub-vectors
    are averaged. The buffer ``projection`` has the indices of the dimensions of each group,
    ``[num_groups, group_dim]``; where d ≤ group_dim there is none, and the energy is that of the
    neurons themselves. There is no published program to compare with.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        num_groups: the number of groups. Groups are disjoint as far as d allows, see
            :func:`~mhe_core.regularizers.projections.dimension_groups`: with
            num_groups · group_dim < d some dimensions are in no group, with more than d some are in
            several.
        group_dim: the number of dimensions in each.
        half_space: count every sub-vector together with its antipode.
        seed: see :class:`CoMHE`; layers of equal dimension with the same seed share groups.
        s: power of the Riesz potential, a real number ≥ 0.
        distance: ``"euclidean"`` (chord) or ``"angular"`` (radians).
        convention: ``"paper"`` or ``"released_code"``.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        num_neurons: int,
        dim: int,
        *,
        num_groups: int = 20,
        group_dim: int = 30,
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
        check_integer("num_groups", num_groups, 1)
        check_integer("group_dim", group_dim, 1)
        self.num_groups = num_groups
        self.group_dim = group_dim
        if dim > group_dim:
            self.projection = torch.empty(num_groups, group_dim, dtype=torch.int64)
            self.reset_parameters()

    needs_update = False
    published_weight = None  # there is no published program

    def reset_parameters(self) -> None:
        """Split the dimensions as when it was made."""
        if self.projection is not None and not self.projection.is_meta:
            groups = dimension_groups(self.dim, self.num_groups, self.group_dim, self.seed)
            self.projection.copy_(groups)

    @property
    def compressed_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(number of groups, their dimensions)."""
        return () if self.projection is None else tuple(self.projection.shape)

    def compress(self, neurons: Tensor, projection: Tensor) -> Tensor:
        """``[..., num_groups, N, group_dim]``."""
        return select(working_copy(neurons), projection)
