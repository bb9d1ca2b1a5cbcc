r"""Hyperspherical energy, as it is defined.

For N neurons with directions :math:`u_i = w_i / \lVert w_i \rVert`, the hyperspherical energy is
the mean of a potential over pairs of directions (Liu et al., *Learning towards Minimum
Hyperspherical Energy*, NeurIPS 2018, eq. 1 and 2), see potential.py. The half-space energy is the
same over the 2N directions {u, −u}; it needs the N×N cosines only, because a pair (u, v) brings the
cosines c, −c, −c and c, and each neuron meets its own antipode.

This file is the definition: short, in plain PyTorch, differentiable any number of times and fit for
the transforms of ``torch.func``. Values and first derivatives are computed by _tiles.py, faster and
in less memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mhe_core.autocast import without_autocast
from mhe_core.autograd_functions import signature_kept
from mhe_core.energy.pair_potential import PairPotential
from mhe_core.energy.potential_base import NEAR
from mhe_core.energy.rows import directions, wide_dtype, working_copy

__all__ = ["definition"]


def definition(
    neurons: Tensor, anchors: Tensor | None, pair: PairPotential, *, rows: bool = False
) -> Tensor:
    """The energy ``[...]`` of ``[..., N, d]``; in memory for N × N × (1 + near pairs' part × d).

    Args:
        neurons: ``[..., N, d]``.
        anchors: indices ``[M]``, or None for all neurons.
        pair: the potential of a pair.
        rows: each anchor's mean over its pairs, ``[..., M]``, in place of the mean of those.
    """
    x = working_copy(neurons)
    N = x.shape[-2]
    index = torch.arange(N, device=x.device) if anchors is None else anchors.to(x.device)
    others = index.unsqueeze(1) != torch.arange(N, device=x.device)  # [M, N]: not with itself

    # Directions, differences of them and sums in float64 where there is one: the difference of
    # near neighbours has lost digits, and N² potentials are of very different size.
    wide = wide_dtype(x.device)
    u = directions(x.to(wide), pair.smoothing)
    if pair.smoothing == 0:
        near, far = squared_chords(u[..., index, :], u, others, x.dtype)
        far_self = torch.full_like(near[..., 0], 4.0)  # ‖u + u‖² of a neuron and its antipode
    else:
        u = u.to(x.dtype)
        cosines = (u[..., index, :] @ u.mT).masked_fill(~others, 0.0)
        near, far = 2 - 2 * cosines, 2 + 2 * cosines
        far_self = 2 + 2 * u[..., index, :].square().sum(-1)

    totals = (pair.of_chords(near, far) * others).sum(-1, dtype=wide)
    if pair.half_space:
        totals = totals + pair.potential.of_chords(far_self, 4 - far_self).to(wide)
    means = totals / max(pair.neighbours(N), 1)
    return (means if rows else means.mean(-1)).to(x.dtype)


def squared_chords(
    u: Tensor, v: Tensor, wanted: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """‖u_i − v_j‖² and ‖u_i + v_j‖² for unit (or zero) rows, to full relative accuracy.

    Entries that are not ``wanted`` are those of orthogonal rows.
    """
    cosines = (u.to(dtype) @ v.to(dtype).mT).masked_fill(~wanted, 0.0)
    return measured(2 - 2 * cosines, u, -v), measured(2 + 2 * cosines, u, v)


def measured(chords: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Squared chords with those below NEAR replaced by ‖u_i + v_j‖², summed from the vectors."""
    near = chords.detach() < NEAR
    of_near: Tensor = _MeasuredPairs.apply(near, u, v)
    return chords.masked_fill(near, 0.0) + of_near.to(chords.dtype)


@signature_kept
class _MeasuredPairs(torch.autograd.Function):
    """‖u_i + v_j‖² where it is wanted, else 0.

    A function of its own as it picks pairs by their values, which transforms cannot; its
    derivatives are products of matrices, in which the rows' norms count.
    """

    @staticmethod
    def forward(near: Tensor, u: Tensor, v: Tensor) -> Tensor:
        *batch, i, j = pairs = near.nonzero(as_tuple=True)
        sums = u[(*batch, i)] + v[(*batch, j)]
        return u.new_zeros(near.shape).index_put(pairs, sums.square().sum(-1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor, Tensor]:
        near, u, v = ctx.saved_tensors
        g = 2 * grad_output.masked_fill(~near, 0.0)
        with without_autocast(u.device):
            du = g.sum(-1).unsqueeze(-1) * u + g @ v
            dv = g.sum(-2).unsqueeze(-1) * v + g.mT @ u
        return None, du, dv

    @staticmethod
    def jvp(ctx: Any, _: None, du: Tensor, dv: Tensor) -> Tensor:
        near, u, v = ctx.saved_tensors
        along: Tensor = (u * du).sum(-1).unsqueeze(-1) + (v * dv).sum(-1).unsqueeze(-2)
        along = along + u @ dv.mT + du @ v.mT
        return 2 * along.masked_fill(~near, 0.0)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], near: Tensor, u: Tensor, v: Tensor
    ) -> tuple[Tensor, int]:
        near, u, v = (
            x.unsqueeze(0).expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip((near, u, v), in_dims, strict=True)
        )
        return _MeasuredPairs.apply(near, u, v), 0
