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

import torch
from torch import Tensor
from torch.nn.functional import pad

from mhe_core.energy.potential import NEAR, riesz_potential
from mhe_core.energy.rows import directions, wide_dtype, working_copy

__all__ = ["definition"]


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
    wide = wide_dtype(x.device)
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
