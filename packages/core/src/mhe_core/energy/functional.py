"""The hyperspherical energy as functions: arguments are checked here, and computed by tiles."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch import distributed as dist

from mhe_core.autocast import without_autocast
from mhe_core.energy._autograd import tiled_energy
from mhe_core.energy._ring import ring_energy
from mhe_core.energy._waits import asked_once
from mhe_core.energy.conventions import ConventionName
from mhe_core.energy.distances import DistanceName
from mhe_core.energy.pair_potential import PairPotential
from mhe_core.energy.potential import Potential, Riesz

__all__ = [
    "Reduction",
    "asked_once",
    "hyperspherical_energy",
    "sharded_hyperspherical_energy",
    "share_of_energy",
]

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = get_args(Reduction)


def hyperspherical_energy(
    neurons: Tensor,
    *,
    s: float = 2.0,
    distance: DistanceName = "euclidean",
    half_space: bool = False,
    anchors: Tensor | None = None,
    convention: ConventionName = "paper",
    potential: Potential | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Mean potential of the neurons' directions on the unit sphere, by default Riesz's.

    .. math:: E = \frac{1}{N (N - 1)} \sum_{i \ne j} f(z_{ij}), \qquad f(z) = z^{-s},
        \qquad f(z) = \log \frac{1}{z} \;(s = 0),

    with z the chord :math:`\lVert u_i - u_j \rVert` or the angle :math:`\arccos u_i^\top u_j` of
    directions :math:`u_i = w_i / \lVert w_i \rVert`; in half space the mean is over the pairs of
    the 2N directions :math:`\pm u_i`. Liu et al., NeurIPS 2018, arXiv 1805.09298, eq. 1 (full
    space; there the sum) and section 3.2 (half space).

    Args:
        neurons: the neurons as rows, ``[..., N, d]``, floating point, on any device. Leading
            dimensions are independent batches. A zero row counts as orthogonal to all others and
            gets zero gradient.
        s: the power of the Riesz potential, any real number ≥ 0; 0 is the logarithmic energy.
        distance: ``"euclidean"``, the chord in [0, 2], or ``"angular"``, the geodesic in radians,
            in [0, π].
        half_space: count every neuron together with its antipode, so that collinear neurons, too,
            repel each other.
        anchors: indices ``[M]``, int64: the mean runs over the pairs of each of these M neurons
            with all N − 1 others, for layers with very many neurons. All N as anchors give the
            same value as none.
        convention: ``"paper"``, the definition, independent of the neurons' norms, or
            ``"released_code"``, with the constants of the published programs, so that their logs
            can be compared (there, norms are smoothed: a zero row does get a gradient).
        potential: in place of ``s``, ``distance`` and ``convention``, a potential of
            :mod:`mhe_core.energy.potential`, such as ``Gaussian(t)``, or one's own.
        reduction: ``"mean"``, over all pairs; ``"sum"``, over all unordered pairs, in half space
            over those of the 2N directions (with anchors, their mean times the number of all
            pairs); ``"none"``, each neuron's (each anchor's) mean over its pairs, whose mean is the
            energy.

    Returns:
        The energy ``[...]``, for ``reduction="none"`` ``[..., N]`` or ``[..., M]``; in float32 for
        half-precision neurons, else in their dtype. For the chord the mean is at least −log 2
        (s = 0) or :math:`2^{-s}`. A single neuron has energy 0 in full space. Finite, as is its
        gradient, for all finite input: a potential too large for the dtype stops growing. Where a
        GPU may use TensorFloat-32 for products, it does so here: the gradient of float32 neurons
        then has three digits.

    Raises:
        TypeError: if ``neurons`` is not floating point or a DTensor (the message says what to call
            for one), ``anchors`` not an integer tensor, or ``potential`` not a Potential.
        ValueError: if ``neurons`` has fewer than two dimensions or no row, ``s`` is negative or
            not finite, an option is unknown, or an anchor is out of range; if ``potential`` is
            given along with what it stands for.

    Example:
        >>> import torch
        >>> from mhe_core import hyperspherical_energy
        >>> from mhe_core.energy import Gaussian
        >>> axes = torch.eye(3)
        >>> hyperspherical_energy(axes, s=2)  # three chords of length √2
        tensor(0.5000)
        >>> hyperspherical_energy(axes, s=2, half_space=True)  # and three antipodes at 2
        tensor(0.4500)
        >>> hyperspherical_energy(axes, potential=Gaussian(t=0.5), reduction="sum")  # 3/e
        tensor(1.1036)
    """
    potential = chosen_potential(s, distance, convention, potential)
    check_neurons(neurons)
    if reduction not in REDUCTIONS:
        raise ValueError(f"expected reduction to be one of {REDUCTIONS}, got {reduction!r}")
    if anchors is not None:
        check_anchors(anchors, neurons.shape[-2])
    pair = PairPotential(potential, half_space)
    with without_autocast(neurons.device):
        energy = tiled_energy(neurons, anchors, pair, rows=reduction == "none")
        return energy * pair.number_of_pairs(neurons.shape[-2]) if reduction == "sum" else energy


def sharded_hyperspherical_energy(
    local_rows: Tensor,
    *,
    s: float = 2.0,
    distance: DistanceName = "euclidean",
    half_space: bool = False,
    convention: ConventionName = "paper",
    potential: Potential | None = None,
    group: Any = None,
) -> Tensor:
    r"""Exact energy of the neurons of all processes, each of which holds some of the rows.

    .. math:: E = \frac{1}{N (N - 1)} \sum_{i \ne j} f(z_{ij}), \qquad N = \sum_r N_r

    as in :func:`mhe_core.hyperspherical_energy` (Liu et al., NeurIPS 2018, arXiv 1805.09298).
    A collective operation: all processes of the group have to call it, with the same options. The
    value is the same on all. The gradient is that of the whole energy with respect to this
    process's rows, which are its alone: it is not to be averaged over processes.

    Args:
        local_rows: this process's neurons ``[N_r, d]``, N_r ≥ 1, which may differ between
            processes; d and dtype may not.
        s: see :func:`mhe_core.hyperspherical_energy`, as for the next three.
        distance: ``"euclidean"`` or ``"angular"``.
        half_space: count every neuron together with its antipode.
        convention: ``"paper"`` or ``"released_code"``.
        potential: in place of ``s``, ``distance`` and ``convention``.
        group: the process group; None for all processes. Without ``torch.distributed``, the
            energy is that of the local rows.

    Returns:
        The energy, a scalar in at least float32, once differentiable.

    Raises:
        TypeError: if ``local_rows`` is not floating point, or a DTensor in place of its
            ``to_local()``.
        ValueError: if it is not ``[N_r, d]`` with the d of all processes, or an option is out of
            range.
        RuntimeError: in a backward pass with ``create_graph=True``.

    Example:
        >>> import torch
        >>> from mhe_core import sharded_hyperspherical_energy
        >>> sharded_hyperspherical_energy(torch.eye(3))  # in a single process
        tensor(0.5000)
    """
    potential = chosen_potential(s, distance, convention, potential)
    check_neurons(local_rows)
    if local_rows.ndim != 2:
        raise ValueError(f"expected local_rows as [N_r, d], got {list(local_rows.shape)}")
    pair = PairPotential(potential, half_space)
    alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1
    with without_autocast(local_rows.device):
        if alone:
            return tiled_energy(local_rows, None, pair)
        return ring_energy(local_rows, pair, group)


def share_of_energy(neurons: Tensor, pair: PairPotential, rank: int, processes: int) -> Tensor:
    """The part of the energy ``[...]`` that one of several processes computes.

    The parts, and their gradients, add up to the energy of ``[..., N, d]`` and its gradient.
    """
    with without_autocast(neurons.device):
        return tiled_energy(neurons, None, pair, (rank, processes))


def chosen_potential(
    s: float,
    distance: DistanceName,
    convention: ConventionName,
    potential: Potential | None,
) -> Potential:
    """The potential that was given, or Riesz's with these options."""
    if potential is None:
        return Riesz(float(s) if type(s) is int else s, distance, convention)
    if not isinstance(potential, Potential):
        got = type(potential).__name__
        raise TypeError(f"expected potential as a mhe_core.energy.Potential, got {got}")
    if (s, distance, convention) != (2.0, "euclidean", "paper"):
        raise ValueError(
            "expected a potential, or s, distance and convention, got both: "
            f"{potential!r} and s={s!r}, distance={distance!r}, convention={convention!r}"
        )
    return potential


def check_neurons(neurons: Tensor) -> None:
    """Raise a TypeError or ValueError that says what was expected and what came."""
    if not isinstance(neurons, Tensor) or not neurons.is_floating_point():
        got = neurons.dtype if isinstance(neurons, Tensor) else type(neurons).__name__
        raise TypeError(f"expected neurons as a floating-point tensor, got {got}")
    if hasattr(neurons, "full_tensor"):
        placements = getattr(neurons, "placements", "")
        raise TypeError(
            f"expected neurons as a plain tensor, got a DTensor {placements}: call "
            "sharded_hyperspherical_energy(neurons.to_local()) on all processes where its rows are "
            "sharded, else hyperspherical_energy(neurons.full_tensor())"
        )
    if neurons.ndim < 2 or 0 in neurons.shape[-2:]:
        raise ValueError(
            f"expected neurons as rows, [..., N, d] with N, d at least 1, got {list(neurons.shape)}"
        )


def check_anchors(anchors: Tensor, N: int) -> None:
    """Raise a TypeError or ValueError unless these are indices of N neurons."""
    if not isinstance(anchors, Tensor) or anchors.dtype not in (torch.int64, torch.int32):
        got = anchors.dtype if isinstance(anchors, Tensor) else type(anchors).__name__
        raise TypeError(f"expected anchors as a tensor of int64 indices, got {got}")
    if anchors.ndim != 1 or len(anchors) == 0:
        raise ValueError(f"expected anchors as [M] with M at least 1, got {list(anchors.shape)}")
    if torch.compiler.is_compiling():  # their values are not known yet
        return
    low, high = int(anchors.min()), int(anchors.max())
    if low < 0 or high >= N:
        raise ValueError(
            f"expected anchors between 0 and {N - 1} for {N} neurons, got {low} to {high}"
        )
