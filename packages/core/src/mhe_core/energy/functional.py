"""The hyperspherical energy as functions: arguments are checked here, and computed by tiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from mhe_core.energy._ring import ring_energy
from mhe_core.energy._tiles import tiled_energy
from mhe_core.energy.potential import Riesz, check_options

__all__ = ["hyperspherical_energy", "sharded_hyperspherical_energy", "share_of_energy"]


def hyperspherical_energy(
    neurons: Tensor,
    *,
    s: float = 2.0,
    distance: str = "euclidean",
    half_space: bool = False,
    anchors: Tensor | None = None,
    convention: str = "paper",
) -> Tensor:
    r"""Mean Riesz s-energy of the neurons' directions on the unit sphere.

    Liu et al., NeurIPS 2018, eq. 1 (full space) and section 3.2 (half space).

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
        convention: ``"paper"``, the definition, independent of the neurons' lengths, or
            ``"released_code"``, with the constants of the published programs, so that their logs
            can be compared (there, lengths are smoothed: a zero row does get a gradient).

    Returns:
        The energy ``[...]``, in float32 for half-precision neurons, else in their dtype; for the
        chord at least −log 2 (s = 0) or :math:`2^{-s}`. A single neuron has energy 0 in full
        space. Finite, as is its gradient, for all finite input: a potential too large for the
        dtype stops growing.

    Raises:
        TypeError: if ``neurons`` is not floating point, or ``anchors`` not an integer tensor.
        ValueError: if ``neurons`` has fewer than two dimensions or no row, ``s`` is negative or
            not finite, an option is unknown, or an anchor is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import hyperspherical_energy
        >>> axes = torch.eye(3)
        >>> hyperspherical_energy(axes, s=2)  # three chords of length √2
        tensor(0.5000)
        >>> hyperspherical_energy(axes, s=2, half_space=True)  # and three antipodes at 2
        tensor(0.4500)
    """
    check_arguments(neurons, s, distance, anchors, convention)
    with torch.autocast(neurons.device.type, enabled=False):
        riesz = Riesz(float(s), distance, half_space, convention)
        return tiled_energy(neurons, anchors, riesz)


def sharded_hyperspherical_energy(
    local_rows: Tensor,
    *,
    s: float = 2.0,
    distance: str = "euclidean",
    half_space: bool = False,
    convention: str = "paper",
    group: Any = None,
) -> Tensor:
    """Exact energy of the neurons of all processes, each of which holds some of the rows.

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
        group: the process group; None for all processes. Without ``torch.distributed``, the
            energy is that of the local rows.

    Returns:
        The energy, a scalar in at least float32, once differentiable.

    Raises:
        TypeError: if ``local_rows`` is not floating point.
        ValueError: if it is not ``[N_r, d]`` with the d of all processes, or an option is out of
            range.
        RuntimeError: in a backward pass with ``create_graph=True``.

    Example:
        >>> import torch
        >>> from mhe_core import sharded_hyperspherical_energy
        >>> sharded_hyperspherical_energy(torch.eye(3))  # in a single process
        tensor(0.5000)
    """
    check_arguments(local_rows, s, distance, None, convention)
    if local_rows.ndim != 2:
        raise ValueError(f"expected local_rows as [N_r, d], got {list(local_rows.shape)}")
    riesz = Riesz(float(s), distance, half_space, convention)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return hyperspherical_energy(local_rows, **riesz._asdict())
    with torch.autocast(local_rows.device.type, enabled=False):
        return ring_energy(local_rows, riesz, group)


def share_of_energy(neurons: Tensor, riesz: Riesz, rank: int, processes: int) -> Tensor:
    """The part of the energy ``[...]`` that one of several processes computes.

    The parts, and their gradients, add up to the energy of ``[..., N, d]`` and its gradient.
    """
    with torch.autocast(neurons.device.type, enabled=False):
        return tiled_energy(neurons, None, riesz, (rank, processes))


def check_arguments(
    neurons: Tensor, s: float, distance: str, anchors: Tensor | None, convention: str
) -> None:
    """Raise a TypeError or ValueError that says what was expected and what came."""
    if not isinstance(neurons, Tensor) or not neurons.is_floating_point():
        got = neurons.dtype if isinstance(neurons, Tensor) else type(neurons).__name__
        raise TypeError(f"expected neurons as a floating-point tensor, got {got}")
    if neurons.ndim < 2 or 0 in neurons.shape[-2:]:
        raise ValueError(
            f"expected neurons as rows, [..., N, d] with N, d at least 1, got {list(neurons.shape)}"
        )
    check_options(s, distance, convention)
    if anchors is None:
        return
    if not isinstance(anchors, Tensor) or anchors.dtype not in (torch.int64, torch.int32):
        got = anchors.dtype if isinstance(anchors, Tensor) else type(anchors).__name__
        raise TypeError(f"expected anchors as a tensor of int64 indices, got {got}")
    if anchors.ndim != 1 or len(anchors) == 0:
        raise ValueError(f"expected anchors as [M] with M at least 1, got {list(anchors.shape)}")
    N = neurons.shape[-2]
    low, high = int(anchors.min()), int(anchors.max())
    if low < 0 or high >= N:
        raise ValueError(
            f"expected anchors between 0 and {N - 1} for {N} neurons, got {low} to {high}"
        )
