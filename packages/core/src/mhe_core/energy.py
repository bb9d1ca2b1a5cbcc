r"""Hyperspherical energy, as it is defined.

For N neurons with directions :math:`u_i = w_i / \lVert w_i \rVert`, the hyperspherical energy is
the mean of a Riesz s-potential over pairs of directions (Liu et al., *Learning towards Minimum
Hyperspherical Energy*, NeurIPS 2018, eq. 1 and 2):

.. math:: f_s(z) = z^{-s} \;(s > 0), \qquad f_0(z) = \log(1/z),

where z is the chord :math:`\lVert u_i - u_j \rVert` or the angle :math:`\arccos u_i^\top u_j`.
The half-space energy is the same over the 2N directions {u, −u}; it needs the N×N cosines only,
because a pair (u, v) brings the cosines c, −c, −c and c, and each neuron meets its own antipode.

This file is the definition: short, differentiable any number of times. Values and first
derivatives are computed by tiles.py, faster and in less memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["hyperspherical_energy"]

DISTANCES = ("euclidean", "angular")
CONVENTIONS = ("paper", "released_code")

# Below this squared chord, 2 − 2c has lost too many digits to cancellation (at 0.25 it keeps six
# of float32's seven): nearer pairs are measured by the difference of the vectors.
NEAR = 0.25


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
    from mhe_core.tiles import Riesz, tiled_energy  # which build on this file

    check_arguments(neurons, s, distance, anchors, convention)
    with torch.autocast(neurons.device.type, enabled=False):
        riesz = Riesz(float(s), distance, half_space, convention)
        return tiled_energy(neurons, anchors, riesz)


def definition(
    neurons: Tensor,
    anchors: Tensor | None,
    s: float,
    distance: str,
    half_space: bool,
    convention: str,
) -> Tensor:
    """The energy in plain PyTorch; in memory for N × N × (1 + near neighbours' share × d)."""
    x = working_copy(neurons)
    N = x.shape[-2]
    rows = torch.arange(N, device=x.device) if anchors is None else anchors.to(x.device)
    others = rows.unsqueeze(1) != torch.arange(N, device=x.device)  # [M, N]: not with itself
    M = len(rows)

    # Directions, differences of them and sums in float64 where there is one: the difference of
    # near neighbours has lost digits, and N² potentials are of very different size.
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    if convention == "paper":
        u = directions(x.to(wide))
        near, far = squared_chords(u[..., rows, :], u, others, x.dtype)
        far_self = torch.full_like(near[..., 0], 4.0)  # ‖u + u‖² of a neuron and its antipode
    else:
        # The published length √(‖w‖² + 1e-4) is that of w with one more entry.
        u = directions(pad(x.to(wide), (0, 1), value=1e-2))[..., :-1].to(x.dtype)
        cosines = (u[..., rows, :] @ u.mT).masked_fill(~others, 0.0)
        near, far = 2 - 2 * cosines, 2 + 2 * cosines
        far_self = 2 + 2 * u[..., rows, :].square().sum(-1)

    def potential(squared_chord: Tensor, other_side: Tensor) -> Tensor:
        return riesz_potential(squared_chord, other_side, s, distance, convention)

    total = (potential(near, far) * others).sum((-2, -1), dtype=wide)
    pairs = M * (N - 1)
    if half_space:
        total = total + (potential(far, near) * others).sum((-2, -1), dtype=wide)
        total = total + potential(far_self, 4 - far_self).sum(-1, dtype=wide)
        pairs = M * (2 * N - 1)
    return (total / max(pairs, 1)).to(x.dtype)


def riesz_potential(
    squared_chord: Tensor, other_side: Tensor, s: float, distance: str, convention: str
) -> Tensor:
    """Potential of pairs at the given squared chord ‖u − v‖².

    ``other_side`` is ‖u + v‖², which is 4 − ‖u − v‖² but keeps its digits near the antipode.
    """
    smallest = smallest_squared_chord(s, squared_chord.dtype)
    q = squared_chord.clamp_min(smallest)
    if distance == "euclidean":
        if s == 0:
            return -torch.log(q) if convention == "released_code" else -0.5 * torch.log(q)
        return q ** (-s / 2)
    # 2·atan2(‖u − v‖, ‖u + v‖): arccos has no usable gradient near ±1.
    angle = 2 * torch.atan2(q.sqrt(), other_side.clamp_min(smallest).sqrt())
    if convention == "released_code":
        angle = angle / math.pi + 1e-4
    angle = angle.clamp_min(math.sqrt(smallest))
    if s == 0:
        return -torch.log(angle)
    return (0.1 if convention == "released_code" else 1.0) * angle**-s


def squared_chords(
    u: Tensor, v: Tensor, wanted: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """‖u_i − v_j‖² and ‖u_i + v_j‖² for unit (or zero) rows, to full relative accuracy.

    Entries that are not ``wanted`` are those of orthogonal rows.
    """
    cosines = (u.to(dtype) @ v.to(dtype).mT).masked_fill(~wanted, 0.0)
    return measured_again(2 - 2 * cosines, u, -v), measured_again(2 + 2 * cosines, u, v)


def measured_again(chords: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Squared chords with those below NEAR replaced by ‖u_i + v_j‖², summed from the vectors."""
    *batch, i, j = close = (chords.detach() < NEAR).nonzero(as_tuple=True)
    if len(i) == 0:
        return chords
    measured = (u[(*batch, i)] + v[(*batch, j)]).square().sum(-1)
    return chords.index_put(close, measured.to(chords.dtype))


def directions(neurons: Tensor) -> Tensor:
    """Unit rows; a zero row stays zero and gets zero gradient.

    Rows are divided by their largest entry first, so that squares neither overflow nor vanish.
    """
    largest = neurons.detach().abs().amax(-1, keepdim=True)
    zero = largest == 0
    scaled = neurons / largest.masked_fill(zero, 1.0)
    lengths = scaled.square().sum(-1, keepdim=True).masked_fill(zero, 1.0).sqrt()
    return (scaled / lengths).masked_fill(zero, 0.0)


def smallest_squared_chord(s: float, dtype: torch.dtype) -> float:
    """The squared chord below which a potential stops growing.

    The resolution of the dtype, or where the slope of the potential would overflow.
    """
    info = torch.finfo(dtype)
    return max(info.eps**2, (info.max * 1e-2 / (1 + s)) ** (-1 / (s / 2 + 1)))


def working_copy(neurons: Tensor) -> Tensor:
    """The neurons in at least float32, with a gradient that stays in their dtype's range.

    The energy does not depend on a neuron's length, so its gradient grows as the inverse of it.
    """
    x = neurons.to(torch.promote_types(neurons.dtype, torch.float32))
    if x.requires_grad:
        x = x.view_as(x)  # the hook belongs to this call, not to the caller's tensor
        limit = torch.finfo(neurons.dtype).max
        x.register_hook(lambda g: None if g is None else g.clamp(-limit, limit))
    return x


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


def check_options(s: float, distance: str, convention: str) -> None:
    """The part of :func:`check_arguments` that needs no neurons."""
    if isinstance(s, bool) or not isinstance(s, (int, float)):
        raise TypeError(f"expected s as a number, got {type(s).__name__}")
    if not 0 <= s < math.inf:
        raise ValueError(f"expected s as a finite number ≥ 0, got {s}")
    if distance not in DISTANCES:
        raise ValueError(f"expected distance to be one of {DISTANCES}, got {distance!r}")
    if convention not in CONVENTIONS:
        raise ValueError(f"expected convention to be one of {CONVENTIONS}, got {convention!r}")
