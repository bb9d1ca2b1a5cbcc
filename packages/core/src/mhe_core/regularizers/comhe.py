"""Compressive MHE (CoMHE): the energy of projected neurons, as regularizers.

Those whose projection is trained are in :mod:`mhe_core.regularizers.learned_comhe`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from mhe_core.energy.rows import in_range, working_copy
from mhe_core.regularizers.mhe import MHE
from mhe_core.regularizers.projections import dimension_groups, draw_gaussian_, project, select

__all__ = ["CoMHE", "GroupCoMHE", "RandomCoMHE", "check_integer"]

USUAL = 1e-10, 1e10  # lengths of neurons whose projections can do without a factor
LONG = 1e6  # entries of neurons whose smoothed length is their length to rounding


class CoMHE(MHE):
    """What the compressive regularizers share: the energy of what :meth:`compress` returns.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        s: power of the Riesz potential, a real number ≥ 0.
        distance: ``"euclidean"`` (chord) or ``"angular"`` (radians).
        convention: ``"paper"`` or ``"released_code"``.
        half_space: count every projected neuron together with its antipode.
        seed: what the projection is drawn from, an integer ≥ 0: layers of equal dimension that
            are given the same seed share their random or group projections, and learned ones start
            from the same. None draws a seed from torch's global generator, so that each layer has
            a projection of its own; in a distributed run, the first :meth:`update` then takes
            the projection of rank 0, so that it must be called on all ranks.

    Raises:
        ValueError: if an argument is out of range.
    """

    projection: Tensor | None

    def __init__(
        self,
        num_neurons: int,
        dim: int,
        *,
        s: float = 2.0,
        distance: str = "euclidean",
        convention: str = "paper",
        half_space: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__(num_neurons, dim, s=s, distance=distance, convention=convention)
        if seed is not None:
            check_integer("seed", seed, 0)
        self.half_space = half_space
        self.seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
        self._ranks_agree = seed is not None
        self.register_buffer("projection", None)

    def forward(self, neurons: Tensor, anchors: Tensor | None = None) -> Tensor:
        """Scalar energy of the projected neurons, the mean over projections and leading dimensions.

        Args:
            neurons: ``[..., N, d]``.
            anchors: indices ``[M]``: the energy of these neurons against all others.
        """
        if self.projection is None:
            return super().forward(neurons, anchors)
        self.check_dim(neurons)
        with torch.autocast(neurons.device.type, enabled=False):
            compressed = self.compress(neurons, self.projection)
        return super().forward(compressed, anchors)

    def compress(self, neurons: Tensor, projection: Tensor) -> Tensor:
        """Neurons ``[..., N, d]`` to ``[..., N, k]`` or ``[..., P, N, k]``, at least float32."""
        raise TypeError(f"{type(self).__name__} does not define compress(neurons, projection)")

    def update(self, neurons: Tensor, lr: float) -> None:
        """Advance the projection by one training step, before the step's forward.

        Args:
            neurons: the layer's neurons ``[..., N, d]``.
            lr: the network's current learning rate.
        """
        if self.projection is None:
            return
        self.check_dim(neurons)
        if not self._ranks_agree:
            self._agree(self.projection)
        with torch.autocast(neurons.device.type, enabled=False):
            self.advance(working_copy(neurons.detach()), self.projection, lr)

    def advance(self, neurons: Tensor, projection: Tensor, lr: float) -> None:
        """What :meth:`update` does to the projection, in place; by default nothing."""

    def _agree(self, projection: Tensor) -> None:
        """Take the seed and projection of rank 0, once in a process."""
        self._ranks_agree = True
        if not (dist.is_available() and dist.is_initialized()):
            return
        seed = torch.tensor(self.seed, device=projection.device)
        dist.broadcast(seed, 0)
        dist.broadcast(projection, 0)
        self.seed = int(seed)

    def unprojected(self, neurons: Tensor) -> Tensor:
        """The neurons, with lengths at which a projection neither overflows nor vanishes.

        By the definition lengths do not count; the published programs' smoothing of lengths makes
        no difference to long neurons. So the factor counts as a constant.
        """
        if neurons.dtype in (torch.float32, torch.float64):  # others' range is small
            lengths = torch.linalg.vector_norm(neurons.detach(), dim=-1)
            if in_range(lengths, *USUAL):
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
    """Mean energy over random Gaussian projections (Lin et al., CVPR 2020).

    The projections are redrawn every ``redraw_interval`` updates, as a pure function of the seed
    and the number of redraws, both of which are in the state dict. They are the buffer
    ``projection``, ``[num_projections, projection_dim, d]``; where d ≤ projection_dim there is
    none, and the energy is that of the neurons themselves.

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
        distance: str = "euclidean",
        convention: str = "paper",
    ) -> None:
        super().__init__(
            num_neurons, dim, s=s, distance=distance, convention=convention,
            half_space=half_space, seed=seed,
        )  # fmt: skip
        check_integer("projection_dim", projection_dim, 1)
        check_integer("num_projections", num_projections, 1)
        check_integer("redraw_interval", redraw_interval, 0)
        self.redraw_interval = redraw_interval
        self.updates = 0
        if dim > projection_dim:
            self.projection = torch.empty(num_projections, projection_dim, dim)
            draw_gaussian_(self.projection, self.seed, 0)

    def compress(self, neurons: Tensor, projection: Tensor) -> Tensor:
        """``[..., P, N, k]``."""
        return project(self.unprojected(neurons), projection)

    def advance(self, neurons: Tensor, projection: Tensor, lr: float) -> None:
        """Redraw every ``redraw_interval`` updates."""
        self.updates += 1
        if self.redraw_interval and self.updates % self.redraw_interval == 0:
            draw_gaussian_(projection, self.seed, self.updates // self.redraw_interval)

    def get_extra_state(self) -> Tensor:
        """Seed and number of updates, for the state dict.

        Not buffers: reading a number back from an accelerator would stall it at every update.
        """
        return torch.tensor([self.seed, self.updates])

    def set_extra_state(self, state: Tensor) -> None:
        """Continue from a state dict."""
        self.seed, self.updates = state.tolist()


class GroupCoMHE(CoMHE):
    """Mean energy over groups of dimensions (Lin et al., CVPR 2020).

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
        distance: str = "euclidean",
        convention: str = "paper",
    ) -> None:
        super().__init__(
            num_neurons, dim, s=s, distance=distance, convention=convention,
            half_space=half_space, seed=seed,
        )  # fmt: skip
        check_integer("num_groups", num_groups, 1)
        check_integer("group_dim", group_dim, 1)
        if dim > group_dim:
            self.projection = dimension_groups(dim, num_groups, group_dim, self.seed)

    def compress(self, neurons: Tensor, projection: Tensor) -> Tensor:
        """``[..., num_groups, N, group_dim]``."""
        return select(working_copy(neurons), projection)


def check_integer(name: str, value: int, least: int) -> None:
    """Raise a ValueError if the value is not an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"expected {name} as an integer ≥ {least}, got {value!r}")
