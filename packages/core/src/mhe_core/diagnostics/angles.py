"""Angles between the neurons of a layer, in radians, without all of them in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mhe_core.energy.rows import unit_rows

__all__ = ["NEAR_DUPLICATE", "AngleStatistics", "angle_histogram", "angle_statistics"]

NEAR_DUPLICATE = math.radians(10)
BLOCK = 2**22  # cosines at a time


@dataclass(frozen=True)
class AngleStatistics:
    """Angles between the neurons of a layer, in radians.

    Attributes:
        smallest: between the two nearest neurons; not-a-number for a single neuron.
        mean: over all pairs; not-a-number for a single neuron.
        near_duplicates: how many neurons have another one nearer than the threshold.
    """

    smallest: float
    mean: float
    near_duplicates: int


@torch.no_grad()
def angle_statistics(
    neurons: Tensor, *, half_space: bool = False, near: float = NEAR_DUPLICATE
) -> AngleStatistics:
    """Smallest and mean angle between neurons, and the number of near-duplicates.

    Args:
        neurons: ``[..., N, d]``; angles are taken within each leading index.
        half_space: take the angles between lines, in [0, π/2].
        near: angle in radians below which two neurons are near-duplicates.

    Example:
        >>> import torch
        >>> angle_statistics(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])).near_duplicates
        2
    """
    total, nearest, pairs = 0.0, [], 0
    for u, start, angles in angle_blocks(neurons, half_space):
        angles.diagonal(start).zero_()
        pairs += angles.numel() - len(angles)
        total += float(angles.sum(1).cpu().double().sum())
        angles.diagonal(start).fill_(math.inf)
        rows = u[start : start + len(angles)]
        nearest.append(accurate_angles(rows, u[angles.argmin(1)], half_space))
    if pairs == 0:
        return AngleStatistics(math.nan, math.nan, 0)
    nearest_angles = torch.cat(nearest)
    return AngleStatistics(
        smallest=float(nearest_angles.min()),
        mean=total / pairs,
        near_duplicates=int((nearest_angles < near).sum()),
    )


@torch.no_grad()
def angle_histogram(neurons: Tensor, bins: int = 180, *, half_space: bool = False) -> Tensor:
    """Density of the angles between neurons, to be held against :func:`random_angle_density`.

    Args:
        neurons: ``[..., N, d]``; angles are taken within each leading index.
        bins: number of equal bins of [0, π], or of [0, π/2] for ``half_space``.
        half_space: take the angles between lines, in [0, π/2].

    Returns:
        Density per radian, ``[bins]``, float64 on the CPU: its mean times the range is 1.
    """
    largest = math.pi / 2 if half_space else math.pi
    counts = torch.zeros(bins, dtype=torch.float64)
    for _, start, angles in angle_blocks(neurons, half_space):
        angles.diagonal(start).fill_(-1.0)  # out of range: not counted
        counts += torch.histc(angles, bins, 0.0, largest).cpu()
    return counts / counts.sum() * (bins / largest)


def angle_blocks(neurons: Tensor, half_space: bool) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Directions ``[N, d]``, a row of them, and the angles ``[M, N]`` of M rows from it to all.

    The diagonal that starts there has each neuron's angle with itself, which is not one between
    two neurons. Memory is that of the directions and of one block.
    """
    for matrix in neurons.detach().reshape(-1, *neurons.shape[-2:]):
        u = directions_in_parts(matrix)
        step = max(1, BLOCK // len(u))
        for start in range(0, len(u), step):
            cosines = (u[start : start + step] @ u.mT).clamp_(-1.0, 1.0)
            if half_space:
                cosines.abs_()
            yield u, start, cosines.acos_()


def directions_in_parts(neurons: Tensor) -> Tensor:
    """Unit rows of ``[N, d]``, in at least float32; one copy of the neurons, and not three more."""
    u = torch.empty_like(neurons, dtype=torch.promote_types(neurons.dtype, torch.float32))
    step = max(1, BLOCK // neurons.shape[-1])
    for rows, unit in zip(neurons.split(step), u.split(step), strict=True):
        unit.copy_(unit_rows(rows.to(u.dtype), 0.0)[0])
    return u


def accurate_angles(u: Tensor, v: Tensor, half_space: bool) -> Tensor:
    """Angles between unit rows of ``u`` and ``v``, also where their cosine rounds to 1."""
    near, far = (u - v).norm(dim=-1), (u + v).norm(dim=-1)
    angles = 2 * torch.atan2(near, far)
    zero = (u == 0).all(-1) | (v == 0).all(-1)  # counts as orthogonal
    angles = angles.masked_fill(zero, math.pi / 2)
    return torch.minimum(angles, math.pi - angles) if half_space else angles
