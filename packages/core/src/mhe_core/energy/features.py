"""Energies of features: of a batch's, on however many processes it is, and of class means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from mhe_core.energy.functional import hyperspherical_energy, sharded_hyperspherical_energy
from mhe_core.energy.potential import DistanceName, Gaussian, Potential
from mhe_core.energy.rows import unit_rows

__all__ = ["class_uniformity", "feature_energy", "feature_uniformity"]


def feature_energy(
    features: Tensor,
    *,
    s: float = 2.0,
    distance: DistanceName = "euclidean",
    half_space: bool = False,
    potential: Potential | None = None,
    group: Any = None,
) -> Tensor:
    r"""Mean potential of the directions of a batch's features, over all processes' batches.

    .. math:: E = \frac{1}{B (B - 1)} \sum_{i \ne j} f(z_{ij})

    over all B features, as :func:`mhe_core.hyperspherical_energy` (Liu et al., NeurIPS 2018,
    arXiv 1805.09298) has it of neurons.

    Where ``torch.distributed`` is initialized, every pair of all processes' features counts, and
    none gathers them: they go round a ring. All processes of the group have to call it. The value
    is the same on all; the gradient is that of the whole energy times the number of processes, so
    that its *average* over processes, which DistributedDataParallel takes, is the whole's.

    Args:
        features: this process's ``[B, d]``, B ≥ 1, which may differ between processes.
        s: see :func:`mhe_core.hyperspherical_energy`, as for the next three.
        distance: ``"euclidean"`` or ``"angular"``.
        half_space: count every feature together with its antipode.
        potential: in place of ``s`` and ``distance``: ``Gaussian(t)`` for what
            :func:`feature_uniformity` takes the logarithm of.
        group: the process group; None for all processes.

    Returns:
        The energy, a scalar in at least float32, finite also where features are equal; 0 for a
        single one.

    Raises:
        TypeError: if ``features`` is not floating point.
        ValueError: if it is not ``[B, d]``, or an option is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import feature_energy
        >>> feature_energy(torch.eye(3), s=2)  # three chords of length √2
        tensor(0.5000)
        >>> feature_energy(torch.ones(1, 3))  # no pair
        tensor(0.)
    """
    energy = sharded_hyperspherical_energy(
        features, s=s, distance=distance, half_space=half_space, potential=potential, group=group
    )
    others = processes(group) - 1
    return energy + others * (energy - energy.detach()) if others else energy


def feature_uniformity(features: Tensor, *, t: float = 2.0, group: Any = None) -> Tensor:
    r"""Uniformity of a batch's features, a loss: lower is more uniform.

    Wang and Isola, ICML 2020 (arXiv 2005.10242), over the pairs of different features:

    .. math:: \log \operatorname{mean}_{i < j} \exp(-t \lVert u_i - u_j \rVert^2)

    Args:
        features: this process's ``[B, d]``, see :func:`feature_energy`.
        t: 2 in the paper.
        group: the process group; None for all processes.

    Returns:
        A scalar between −4t and 0, in at least float32; 0, the worst, for a single feature.

    Example:
        >>> import torch
        >>> from mhe_core import feature_uniformity
        >>> feature_uniformity(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]), t=2)
        tensor(-8.)
    """
    energy = feature_energy(features, potential=Gaussian(t), group=group)
    if len(features) == 1 and processes(group) == 1:
        return energy
    return energy.clamp_min(torch.finfo(energy.dtype).tiny).log()


@torch.no_grad()
def class_uniformity(
    features: Tensor,
    labels: Tensor,
    *,
    s: float = 2.0,
    distance: DistanceName = "euclidean",
    potential: Potential | None = None,
    group: Any = None,
) -> Tensor:
    r"""Energy of the classes' mean directions, a metric: lower is more uniform.

    .. math:: E = \frac{1}{C (C - 1)} \sum_{k \ne l} f(z_{kl}), \qquad
        m_k = \operatorname{mean}_{i : y_i = k} u_i,

    with z the chord or angle of two of the m's directions, and u the features' directions on all
    processes; classes of which no process has a feature do not count. The least energy of C
    classes in d ≥ C − 1 dimensions is that of the simplex, to which neural collapse leads (Papyan
    et al., PNAS 2020, arXiv 2008.08186).

    Args:
        features: this process's ``[B, d]``; all processes of the group have to call it.
        labels: their classes ``[B]``, integers ≥ 0.
        s: see :func:`mhe_core.hyperspherical_energy`, as for the next two.
        distance: ``"euclidean"`` or ``"angular"``.
        potential: in place of ``s`` and ``distance``.
        group: the process group; None for all processes.

    Returns:
        A scalar without a gradient; 0 where there is one class.

    Raises:
        TypeError: if ``features`` is not floating point, or ``labels`` not integers.
        ValueError: if the shapes do not fit, or a label is negative.

    Example:
        >>> import torch
        >>> from mhe_core import class_uniformity
        >>> class_uniformity(torch.eye(4), torch.tensor([0, 0, 1, 1]))  # means at 90 degrees
        tensor(0.5000)
    """
    if not features.is_floating_point() or labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(
            "expected features as a floating-point tensor and labels as integers, got "
            f"{features.dtype} and {labels.dtype}"
        )
    if features.ndim != 2 or labels.shape != features.shape[:1] or not labels.numel():
        raise ValueError(
            "expected features [B, d] and labels [B], B at least 1, got "
            f"{list(features.shape)} and {list(labels.shape)}"
        )
    if int(labels.min()) < 0:
        raise ValueError(f"expected labels ≥ 0, got {int(labels.min())}")
    classes = labels.max().to(torch.int64) + 1
    several = processes(group) > 1
    if several:
        dist.all_reduce(classes, dist.ReduceOp.MAX, group=group)
    rows, _ = unit_rows(features.to(torch.promote_types(features.dtype, torch.float32)), 0.0)
    labels = labels.to(torch.int64)
    sums = rows.new_zeros(int(classes), rows.shape[1]).index_add_(0, labels, rows)
    counts = rows.new_zeros(int(classes)).index_add_(0, labels, rows.new_ones(len(rows)))
    if several:
        dist.all_reduce(sums, group=group)
        dist.all_reduce(counts, group=group)
    return hyperspherical_energy(sums[counts > 0], s=s, distance=distance, potential=potential)


def processes(group: Any) -> int:
    """How many processes there are: 1 without ``torch.distributed``."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
