r"""The fast path of the hyperspherical energy: value and gradient in one pass over tiles.

For directions :math:`u_i` with cosines :math:`c_{ij}`, an energy :math:`\sum_{i<j} F(c_{ij})` has
the gradient :math:`\sum_j F'(c_{ij})\, u_j` with respect to :math:`u_i`. A tile of cosines serves
both, and as :math:`c_{ij} = c_{ji}` only the tiles on and above the diagonal are needed: three
quarters of the arithmetic of the two products U·Uᵀ and F'·U, and memory for one tile.

What is computed is defined in energy.py; closed_form.py has the potential as a function of the
cosine.
"""

from __future__ import annotations

from itertools import combinations_with_replacement, product
from typing import Any

import torch
from torch import Tensor

from mhe_core import energy
from mhe_core.closed_form import Riesz

__all__ = ["Block", "PairSum", "tiled_energy", "value_and_gradient"]

# Rows of a tile: few enough that, on a CPU, it stays in the cache.
ROWS_ON_CPU = 512
ROWS = 4096

# Up to so many entries (32 MiB in float32), unit rows are kept; else each tile computes its own.
KEPT = 2**23

# Entries of the differences of near pairs that are held at a time.
DIFFERENCES = 2**19


def tiled_energy(
    neurons: Tensor,
    s: float,
    distance: str,
    half_space: bool,
    anchors: Tensor | None,
    convention: str,
) -> Tensor:
    """The energy ``[...]`` of neurons ``[..., N, d]``, equal to :func:`energy.definition`.

    Differentiable any number of times; derivatives beyond the first are those of the definition.
    """
    return _TiledEnergy.apply(neurons, Riesz(s, distance, half_space, convention), anchors)


class _TiledEnergy(torch.autograd.Function):
    """The gradient is found along with the value, and waits for the backward pass."""

    @staticmethod
    def forward(ctx: Any, neurons: Tensor, riesz: Riesz, anchors: Tensor | None) -> Tensor:
        ctx.riesz, ctx.anchors = riesz, anchors
        ctx.save_for_backward(neurons)
        value, ctx.gradient = value_and_gradient(neurons, riesz, anchors, ctx.needs_input_grad[0])
        return value

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (neurons,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative will be wanted
            r = ctx.riesz
            value = energy.definition(
                neurons, r.s, r.distance, r.half_space, ctx.anchors, r.convention
            )
            (slope,) = torch.autograd.grad(value, neurons, grad_output, create_graph=True)
            return slope, None, None
        # Taken, not kept, so that it can be scaled in place; should this pass be repeated, the
        # gradient is computed again.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            _, gradient = value_and_gradient(neurons, ctx.riesz, ctx.anchors, True)
        limit = torch.finfo(neurons.dtype).max
        gradient.mul_(grad_output[..., None, None]).clamp_(-limit, limit)
        return gradient.to(neurons.dtype), None, None


def value_and_gradient(
    neurons: Tensor,
    riesz: Riesz,
    anchors: Tensor | None,
    wants_gradient: bool,
    share: tuple[int, int] = (0, 1),
) -> tuple[Tensor, Tensor | None]:
    """Energy ``[...]`` and, if wanted, its gradient ``[..., N, d]``, in at least float32.

    Args:
        neurons: ``[..., N, d]``.
        riesz: the potential of a pair.
        anchors: indices ``[M]``, or None for all pairs.
        wants_gradient: whether to find the gradient, too.
        share: (k, n) for the k-th of n shares of the tiles; values and gradients of all shares
            add up to those of the whole.
    """
    x = neurons.detach().reshape(-1, *neurons.shape[-2:])
    gradient = x.new_zeros(x.shape, dtype=working_dtype(x)) if wants_gradient else None
    rows = tile_rows(x)
    together = max(1, (ROWS_ON_CPU // rows) ** 2)
    energies = [x.new_zeros(0)]
    for k in range(0, len(x), together):
        part = slice(k, k + together)
        slope = None if gradient is None else gradient[part]
        energies.append(energy_of_tiles(x[part], slope, rows, riesz, anchors, share))
    value = torch.cat(energies).to(working_dtype(x)).view(neurons.shape[:-2])
    return value, None if gradient is None else gradient.view(neurons.shape)


def energy_of_tiles(
    x: Tensor,
    gradient: Tensor | None,
    rows: int,
    riesz: Riesz,
    anchors: Tensor | None,
    share: tuple[int, int],
) -> Tensor:
    """Energy ``[B]`` of ``[B, N, d]``, in tiles of ``rows``; fills in the gradient if given."""
    N = x.shape[1]
    index = torch.arange(N, device=x.device)
    keep = x.numel() <= KEPT
    blocks = [
        Block(x[:, k], index[k], None if gradient is None else gradient[:, k], riesz, keep)
        for k in (slice(start, start + rows) for start in range(0, N, rows))
    ]
    if anchors is None:
        left, M = blocks, N / 2  # a pair is counted from one of its ends
        tiles = list(combinations_with_replacement(blocks, 2))
    else:
        left, M = anchor_blocks(x, anchors.to(x.device).split(rows), gradient, riesz), len(anchors)
        tiles = list(product(left, blocks))

    count = M * (2 * N - 1 if riesz.half_space else N - 1)
    pairs = PairSum(riesz, 1 / count if count else 1.0, x)
    first, step = share
    for a, b in tiles[first::step]:
        pairs.add(a, b, coincide=a is b or anchors is not None)
    if riesz.half_space and first == 0:
        for a in left:
            pairs.add_antipodes(a, 1.0 if anchors is not None else 0.5)
    for a in left:
        if a not in blocks and gradient is not None and a.slope is not None:
            gradient.index_add_(1, a.index, a.slope)
    for block in blocks:
        block.finish()
    return pairs.total


def anchor_blocks(
    x: Tensor, parts: tuple[Tensor, ...], gradient: Tensor | None, riesz: Riesz
) -> list[Block]:
    """Copies of some neurons, with slopes of their own."""
    blocks = []
    for index in parts:
        slope = None if gradient is None else torch.zeros_like(gradient[:, : len(index)])
        blocks.append(Block(x[:, index], index, slope, riesz, keep=True))
    return blocks


class Block:
    """Some of the neurons, their directions, and the energy's slope along these.

    Args:
        neurons: ``[B, n, d]``.
        index: ``[n]``, which of all neurons they are.
        slope: ``[B, n, d]``, to be added to; None where no gradient is wanted.
        riesz: its convention is that of the neurons' lengths.
        keep: whether to keep the directions, or to compute them whenever they are needed.
    """

    def __init__(
        self, neurons: Tensor, index: Tensor, slope: Tensor | None, riesz: Riesz, keep: bool
    ) -> None:
        self.neurons = neurons
        self.index = index
        self.slope = slope
        self.smoothing = riesz.smoothing
        self._kept: tuple[Tensor, Tensor] | None = None
        if keep:
            self._kept = self.directions()

    def directions(self) -> tuple[Tensor, Tensor]:
        """Unit rows ``[B, n, d]`` and lengths ``[B, n, 1]``."""
        if self._kept is None:
            return unit_rows(self.neurons.to(working_dtype(self.neurons)), self.smoothing)
        return self._kept

    def finish(self) -> None:
        """Turn the slope along the directions into the gradient with respect to the neurons."""
        if self.slope is None:
            return
        unit, lengths = self.directions()
        radial = torch.linalg.vecdot(self.slope, unit).unsqueeze(-1)
        limit = torch.finfo(unit.dtype).max
        self.slope.addcmul_(unit, radial, value=-1).div_(lengths).clamp_(-limit, limit)


class PairSum:
    """The energy as it is added up, tile by tile.

    Args:
        riesz: the potential of a pair.
        scale: what potentials are multiplied by: one over the number of pairs.
        like: the neurons ``[B, N, d]``.
    """

    def __init__(self, riesz: Riesz, scale: float, like: Tensor) -> None:
        self.riesz = riesz
        self.scale = scale
        self.dtype = working_dtype(like)
        self.wide = torch.float32 if like.device.type == "mps" else torch.float64
        self.limit = riesz.largest_cosine(self.dtype)
        self.total = like.new_zeros(len(like), dtype=self.wide)

    def add(self, a: Block, b: Block, coincide: bool) -> None:
        """Add the pairs of a neuron in ``a`` and one in ``b``, and slopes to those they have.

        Args:
            a: some neurons.
            b: some others, or ``a`` itself: then each pair comes twice, and counts half.
            coincide: whether some neuron may be in both; with itself it makes no pair.
        """
        (u, _), (v, _) = a.directions(), b.directions()
        cosines = torch.bmm(u, v.mT)
        itself = a.index.unsqueeze(1) == b.index if coincide else None
        if itself is not None:
            cosines.masked_fill_(itself, 0.0)
        sizes = cosines.abs()
        near = sizes > self.limit if sizes.amax() > self.limit else None
        F, dF = self.riesz.of_cosines(cosines, self.scale)
        if near is not None and itself is not None:
            near.masked_fill_(itself, False)
        for mask in (itself, near):
            if mask is not None:
                F.masked_fill_(mask, 0.0)
                dF.masked_fill_(mask, 0.0)
        weight = 0.5 if a is b else 1.0
        self.total += F.sum((-2, -1), dtype=self.wide) * (weight * self.scale * self.riesz.factor)
        if a.slope is not None:
            a.slope.baddbmm_(dF, v)
        if b.slope is not None and b is not a:
            b.slope.baddbmm_(dF.mT, u)
        if near is not None:
            self._add_near(a, b, near, weight)

    def _add_near(self, a: Block, b: Block, near: Tensor, weight: float) -> None:
        """Add pairs that are so near that their cosine has too few digits."""
        pairs = near.nonzero()
        for some in pairs.split(max(1, DIFFERENCES // a.neurons.shape[-1])):
            batch, i, j = some.unbind(1)
            u = unit_rows(a.neurons[batch, i].to(self.wide), a.smoothing)[0].requires_grad_()
            v = unit_rows(b.neurons[batch, j].to(self.wide), b.smoothing)[0].requires_grad_()
            with torch.enable_grad():
                F = self.riesz.of_pairs(u, v, self.dtype).to(self.wide) * self.scale
            self.total.index_add_(0, batch, F.detach() * weight)
            if a.slope is None:
                continue
            du, dv = torch.autograd.grad(F, (u, v), torch.ones_like(F))
            a.slope.index_put_((batch, i), du.to(self.dtype), accumulate=True)
            if b.slope is not None and b is not a:
                b.slope.index_put_((batch, j), dv.to(self.dtype), accumulate=True)

    def add_antipodes(self, a: Block, weight: float) -> None:
        """Add the pair that each neuron in ``a`` makes with its own antipode."""
        u, _ = a.directions()
        squares = u.square().sum(-1) if a.smoothing else u.new_ones(u.shape[:-1])
        squares.requires_grad_()
        with torch.enable_grad():
            F = self.riesz.of_antipodes(squares) * (weight * self.scale)
        self.total += F.detach().sum(-1, dtype=self.wide)
        if a.slope is not None and a.smoothing:
            (dF,) = torch.autograd.grad(F, squares, torch.ones_like(F))
            a.slope.addcmul_(u, dF.unsqueeze(-1), value=2)


def unit_rows(neurons: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Directions and lengths of rows; a row of zeros has direction 0 and infinite length.

    Rows are divided by their largest entry first, so that squares neither overflow nor vanish.

    Args:
        neurons: ``[..., d]``.
        smoothing: an additional entry that lengths, but not directions, have.
    """
    largest = neurons.abs().amax(-1, keepdim=True)
    if smoothing:
        largest.clamp_min_(smoothing)
    else:
        largest.masked_fill_(largest == 0, torch.inf)
    unit = neurons / largest
    lengths = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
    if smoothing:
        lengths = torch.hypot(lengths, smoothing / largest)
    else:
        lengths.clamp_min_(1.0)
    return unit.div_(lengths), lengths.mul_(largest)


def tile_rows(x: Tensor) -> int:
    """Rows of a tile of ``[B, N, d]``: equal ones, for as many tiles as are needed."""
    most = ROWS_ON_CPU if x.device.type == "cpu" else ROWS
    N = x.shape[1]
    return -(-N // -(-N // most))


def working_dtype(neurons: Tensor) -> torch.dtype:
    """What the energy is computed in: at least float32."""
    return torch.promote_types(neurons.dtype, torch.float32)
