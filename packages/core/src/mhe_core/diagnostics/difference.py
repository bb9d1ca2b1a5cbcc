"""What training did to the neurons of a network: two sets of weights, layer by layer.

``mhe diff`` prints these; here they are as functions. Angles are in radians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mhe_core.diagnostics._checkpoint import Checkpoint
from mhe_core.diagnostics.angles import angle_statistics
from mhe_core.energy import hyperspherical_energy
from mhe_core.energy.distances import DistanceName
from mhe_core.errors import UserError
from mhe_core.network import dense, named_weights

__all__ = ["Comparison", "LayerDifference", "Unpaired", "compare_weights", "difference"]

BLOCK = 2**22  # cosines at a time

Weights = nn.Module | Mapping[str, Any]
Readers = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class LayerDifference:
    r"""What became of one layer's neurons W, as W'.

    Attributes:
        name: of the weight.
        num_neurons: N, of each group.
        dim: d.
        energy_base: hyperspherical energy of W; over groups the mean.
        energy_tuned: of W'.
        relative_change: (E(W') - E(W)) / E(W).
        cosine_rms: root mean square, over all pairs of neurons, of the change of their cosine.
        rotation_defect: min over orthogonal R of ‖U - U' R‖_F / √N, for the directions U and U' as
            rows: 0 where the neurons were only turned together, in [0, √2].
        norm_ratio: ‖W'‖_F / ‖W‖_F.
        smallest_angle_base: between the two nearest neurons of W, in radians.
        smallest_angle_tuned: of W'.
        sampled: how many neurons of each group all this was computed from: N, or fewer.
    """

    name: str
    num_neurons: int
    dim: int
    energy_base: float
    energy_tuned: float
    relative_change: float
    cosine_rms: float
    rotation_defect: float
    norm_ratio: float
    smallest_angle_base: float
    smallest_angle_tuned: float
    sampled: int


@dataclass(frozen=True)
class Unpaired:
    """Weights of two or more dimensions that cannot be compared, by name."""

    only_base: tuple[str, ...]
    only_tuned: tuple[str, ...]
    other_shape: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What became of each weight that both networks have, and which those are that only one has."""

    layers: tuple[LayerDifference, ...]
    unpaired: Unpaired


def difference(base: Weights, tuned: Weights, **options: Any) -> list[LayerDifference]:
    """The layers of :func:`compare_weights`, with its options; what is unpaired is left out.

    Example:
        >>> import torch
        >>> base = torch.nn.Linear(4, 8)
        >>> rotation = torch.linalg.qr(torch.randn(4, 4)).Q
        >>> turned = {"weight": base.weight.detach() @ rotation}
        >>> (layer,) = difference(base.state_dict(), turned)
        >>> abs(layer.relative_change) < 1e-5, layer.rotation_defect < 1e-5
        (True, True)
    """
    return list(compare_weights(base, tuned, **options).layers)


def compare_weights(
    base: Weights,
    tuned: Weights,
    *,
    s: float = 2.0,
    distance: DistanceName = "euclidean",
    half_space: bool = False,
    reduction: str = "mean",
    max_rows: int | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare each weight that both networks have, of at least two neurons.

    Args:
        base: a network, a state dict, or what :func:`~mhe_core.diagnostics.load_state_dict`
            returns, which is read tensor by tensor.
        tuned: the same after training; names and shapes decide what belongs together.
        s: power of the Riesz potential, a real number ≥ 0.
        distance: of the energy: ``"euclidean"`` (chord) or ``"angular"`` (radians).
        half_space: count every neuron together with its antipode, in energies and angles.
        reduction: ``"mean"`` over pairs, or ``"sum"`` over the unordered pairs (of a sample,
            scaled to all neurons).
        max_rows: of groups with more neurons, take a sample of so many: the same ones of both.
        seed: of the sample.

    Returns:
        One entry a weight, in the base's order, and the names of the weights left out.

    Raises:
        TypeError: if one is neither a network nor a mapping.
        ValueError: if an option is out of range, or nothing can be compared.
    """
    if reduction not in ("mean", "sum"):
        raise UserError(f"expected reduction as 'mean' or 'sum', got {reduction!r}")
    if max_rows is not None and max_rows < 2:
        raise UserError(f"expected max_rows as at least 2, got {max_rows}")
    energy = partial(hyperspherical_energy, s=s, distance=distance, half_space=half_space)
    one, other = _readers(base), _readers(tuned)
    layers, other_shape = [], []
    for name in [name for name in one if name in other]:
        before, after = (_sampled(readers[name], max_rows, seed) for readers in (one, other))
        if before is None and after is None:
            continue
        if before is None or after is None or before.shape != after.shape:
            other_shape.append(name)
            continue
        N = before.shape[-2]
        if N < 2 or before.rows.numel() == 0:
            continue
        scale = _pair_count(N, half_space) if reduction == "sum" else 1.0
        layers.append(_compared(name, N, before.rows, after.rows, energy, scale, half_space))
    if not layers:
        raise UserError("expected weights that both have in equal shapes, found none")
    rest = Unpaired(_only(one, other), _only(other, one), tuple(other_shape))
    return Comparison(tuple(layers), rest)


class _Rows(NamedTuple):
    """A weight's shape, and its neurons or a sample of them."""

    shape: torch.Size
    rows: Tensor


def _sampled(read: Callable[[], Tensor], max_rows: int | None, seed: int) -> _Rows | None:
    """The rows to compare, in at least float32; None for what is no weight."""
    values = read().detach()
    if values.ndim < 2 or values.is_meta or not (values.is_floating_point() or values.is_quantized):
        return None
    N = values.shape[-2]
    values = dense(values)
    if max_rows is not None and max_rows < N:
        generator = torch.Generator().manual_seed(seed)
        values = values[..., torch.randperm(N, generator=generator)[:max_rows].sort().values, :]
    rows = values.to(torch.promote_types(values.dtype, torch.float32))
    return _Rows(torch.Size((*values.shape[:-2], N, values.shape[-1])), rows)


def _only(one: Readers, other: Readers) -> tuple[str, ...]:
    """Names of weights that the first has and the second has not."""
    return tuple(name for name in one if name not in other and one[name]().ndim >= 2)


def _readers(weights: Weights) -> Readers:
    """What reads each weight, by name without ``.weight``; tied ones once."""
    if isinstance(weights, nn.Module):
        named = {n: w for n, w in named_weights(weights).items() if w.problem is None}
        first = {w.identity: name for name, w in reversed(named.items())}
        return {name: w.neurons for name, w in named.items() if first[w.identity] == name}
    if not isinstance(weights, Mapping):
        got = type(weights).__name__
        raise TypeError(f"expected a network or a state dict, got {got}")
    readers: Readers = {}
    seen = set()
    for key in weights:
        identity = weights.identity(key) if isinstance(weights, Checkpoint) else key
        if identity in seen or (isinstance(weights, dict) and not isinstance(weights[key], Tensor)):
            continue
        seen.add(identity)
        name = str(key).removesuffix("weight").removesuffix(".")
        readers[name] = partial(_row_matrix, partial(weights.__getitem__, key))
    return readers


def _row_matrix(read: Callable[[], Tensor]) -> Tensor:
    """A state dict's tensor by its rows, as it does not tell what else it may be."""
    tensor = read()
    return tensor.flatten(1) if tensor.ndim > 2 else tensor


def _pair_count(N: int, half_space: bool) -> float:
    """Unordered pairs of N directions; of lines, of the 2N directions."""
    directions = 2 * N if half_space else N
    return directions * (directions - 1) / 2


@torch.no_grad()
def _compared(
    name: str,
    N: int,
    before: Tensor,
    after: Tensor,
    energy: Callable[[Tensor], Tensor],
    scale: float,
    half_space: bool,
) -> LayerDifference:
    """One layer's entry."""
    energies = [float(energy(x).mean()) * scale for x in (before, after)]
    angles = [angle_statistics(x, half_space=half_space).smallest for x in (before, after)]
    groups = list(zip(_directions(before), _directions(after), strict=True))
    norms = [float(x.double().norm()) for x in (before, after)]
    return LayerDifference(
        name=name,
        num_neurons=N,
        dim=before.shape[-1],
        energy_base=energies[0],
        energy_tuned=energies[1],
        relative_change=_ratio(energies[1] - energies[0], energies[0]),
        cosine_rms=_root_mean([_cosine_square(u, v) for u, v in groups]),
        rotation_defect=_root_mean([_defect_square(u, v) for u, v in groups]),
        norm_ratio=_ratio(norms[1], norms[0]),
        smallest_angle_base=angles[0],
        smallest_angle_tuned=angles[1],
        sampled=before.shape[-2],
    )


def _directions(neurons: Tensor) -> Tensor:
    """Unit rows ``[groups, N, d]`` in float64; a zero row stays zero."""
    x = neurons.double().reshape(-1, *neurons.shape[-2:])
    norms = x.norm(dim=-1, keepdim=True)
    return torch.where(norms > 0, x / norms, 0.0)


def _cosine_square(u: Tensor, v: Tensor) -> float:
    """Mean square, over pairs, of the change of the cosine."""
    N, total = len(u), 0.0
    step = max(1, BLOCK // N)
    for start in range(0, N, step):
        block = slice(start, start + step)
        change = u[block] @ u.T - v[block] @ v.T
        change.diagonal(start).zero_()
        total += float(change.square().sum())
    return total / (N * (N - 1))


def _defect_square(u: Tensor, v: Tensor) -> float:
    """Min over orthogonal R of ‖U - V R‖² / N (orthogonal Procrustes, Schönemann 1966).

    R is the orthogonal polar factor of Vᵀ U. With fewer rows than columns, both are first written
    in bases of N dimensions of their row spaces: R turns one space to the other.
    """
    N, d = u.shape
    if d > N:
        u, v = (torch.linalg.qr(x.T).R.T for x in (u, v))
    left, _, right = torch.linalg.svd(v.T @ u, full_matrices=False)
    return float((u - v @ (left @ right)).square().sum()) / N


def _root_mean(squares: list[float]) -> float:
    return math.sqrt(sum(squares) / len(squares))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
