"""The mean potential of many pairs of neurons, and its gradient, tile by tile."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mhe_core.closed_form import Riesz

__all__ = ["Block", "PairMean"]

# Entries of the differences of near pairs that are held at a time.
DIFFERENCES = 2**19


class Block(NamedTuple):
    """Some of the neurons, and where their energy and gradient are added up."""

    neurons: Tensor  # [B, n, d]
    inverse: Tensor  # [B, n], one over their lengths, 0 for a zero row; in the dtype to compute in
    start: int  # of all neurons, they are those from this one on
    picked: Tensor | None  # [n]: they are these instead
    energy: Tensor  # [B], float64
    slope: Tensor | None  # [B, n, d], the gradient but for its part along the neurons
    radial: Tensor  # [B, n], that part, along the directions

    @classmethod
    def of(cls, neurons: Tensor, inverse: Tensor, wants_gradient: bool) -> Block:
        """All neurons, with energy and gradient 0."""
        return cls(
            neurons,
            inverse,
            0,
            None,
            inverse.new_zeros(len(inverse), dtype=wide_dtype(inverse.device)),
            inverse.new_zeros(neurons.shape) if wants_gradient else None,
            torch.zeros_like(inverse),
        )

    def split_batch(self, size: int) -> list[Block]:
        """Parts of the batch."""
        B, N = self.inverse.shape
        if B and size >= B:
            return [self]
        return [self._part(slice(k, k + size), slice(0, N)) for k in range(0, B, size)]

    def split_rows(self, size: int) -> list[Block]:
        """Parts of the neurons."""
        B, N = self.inverse.shape
        if size >= N:
            return [self]
        return [self._part(slice(B), slice(k, k + size)) for k in range(0, N, size)]

    def _part(self, batch: slice, rows: slice) -> Block:
        slope = None if self.slope is None else self.slope[batch, rows]
        return Block(
            self.neurons[batch, rows],
            self.inverse[batch, rows],
            self.start + rows.start,
            None,
            self.energy[batch],
            slope,
            self.radial[batch, rows],
        )

    def pick(self, index: Tensor) -> Block:
        """Copies of some neurons, with a gradient of their own."""
        inverse = self.inverse[:, index]
        block = Block.of(self.neurons[:, index], inverse, self.slope is not None)
        return block._replace(picked=index, energy=self.energy)

    def put(self, index: Tensor, block: Block) -> None:
        """Add the gradient of copies that :meth:`pick` made to that of their originals."""
        if self.slope is not None and block.slope is not None:
            self.slope.index_add_(1, index, block.slope)
            self.radial.index_add_(1, index, block.radial)

    def add_slopes(self, batch: Tensor, i: Tensor, u: Tensor, du: Tensor) -> None:
        """Add slopes along some of the directions."""
        if self.slope is not None:
            tangent = du - (u * du).sum(-1, keepdim=True) * u
            slope = (tangent * self.inverse[batch, i, None]).to(self.slope.dtype)
            self.slope.index_put_((batch, i), slope, accumulate=True)

    def finish(self) -> None:
        """Complete the gradient."""
        if self.slope is not None:
            along = (self.radial * self.inverse.square()).unsqueeze(-1)
            self.slope.addcmul_(self.neurons.to(self.slope.dtype), along, value=-1)


class PairMean:
    """Adds up the mean potential of pairs, and its gradient.

    Args:
        riesz: the potential of a pair.
        count: the number of pairs.
        dtype: the dtype whose range the energy has to keep to.
    """

    def __init__(self, riesz: Riesz, count: float, dtype: torch.dtype) -> None:
        self.riesz = riesz
        self.scale = 1 / count if count else 1.0
        self.dtype = dtype
        self.limit = riesz.largest_cosine(dtype)

    def add(self, a: Block, b: Block) -> None:
        """Add the pairs of a neuron in ``a`` and one in ``b``, and their slopes to the blocks'.

        No neuron makes a pair with itself. Of a block with itself, each pair comes twice and
        counts half.
        """
        rows, columns = a.inverse.unsqueeze(2), b.inverse.unsqueeze(1)
        x, y = a.neurons.to(a.inverse.dtype), b.neurons.to(a.inverse.dtype)
        shared = share_neurons(a, b)
        cosines = torch.bmm(x, y.mT).mul_(rows).mul_(columns)
        if shared:
            clear_own(cosines, a, b)
        sizes = cosines.abs()
        near = None
        if sizes.amax() > self.limit:  # the one place where the host waits for the device
            near = sizes > self.limit
            clear_own(near, a, b)
        F, dF = self.riesz.of_cosines(cosines, self.scale)
        if shared:
            clear_own(F, a, b)
            clear_own(dF, a, b)
        if near is not None:
            F.masked_fill_(near, 0.0)
            dF.masked_fill_(near, 0.0)
        weight = 0.5 if a is b else 1.0
        factor = weight * self.scale * self.riesz.factor
        a.energy.add_(F.sum((1, 2), dtype=a.energy.dtype), alpha=factor)
        if a.slope is not None:
            radial = cosines.mul_(dF)
            dF.mul_(rows).mul_(columns)
            a.radial.add_(radial.sum(2))
            a.slope.baddbmm_(dF, y)
            if b.slope is not None and b is not a:
                b.radial.add_(radial.sum(1))
                b.slope.baddbmm_(dF.mT, x)
        if near is not None:
            self._add_near(a, b, near, weight)

    def _add_near(self, a: Block, b: Block, near: Tensor, weight: float) -> None:
        """Add those pairs whose cosines have too few digits, from the neurons themselves."""
        for pairs in near.nonzero().split(max(1, DIFFERENCES // a.neurons.shape[2])):
            batch, i, j = pairs.unbind(1)
            u = self._directions(a, batch, i).requires_grad_()
            v = self._directions(b, batch, j).requires_grad_()
            with torch.enable_grad():
                F = self.riesz.of_pairs(u, v, self.dtype)
            values = F.detach().to(a.energy.dtype)
            a.energy.index_add_(0, batch, values, alpha=weight * self.scale)
            if a.slope is None:
                continue
            du, dv = torch.autograd.grad(F, (u, v), torch.full_like(F, self.scale))
            a.add_slopes(batch, i, u.detach(), du)
            if b is not a:
                b.add_slopes(batch, j, v.detach(), dv)

    def _directions(self, a: Block, batch: Tensor, i: Tensor) -> Tensor:
        """Some of the directions, with more digits than the tile's."""
        neurons = a.neurons[batch, i].to(a.energy.dtype)
        if self.riesz.smoothing:
            return neurons * a.inverse[batch, i, None]
        return neurons / torch.linalg.vector_norm(neurons, dim=-1, keepdim=True)

    def add_antipodes(self, a: Block, weight: float) -> None:
        """In half space, add the pairs of each neuron and its antipode, ``weight`` times."""
        if not self.riesz.half_space:
            return
        factor = weight * self.scale
        if not self.riesz.smoothing:
            a.energy.add_(factor * a.inverse.shape[1] * self.riesz.of_unit_antipodes())
            return
        u = a.neurons.to(a.inverse.dtype) * a.inverse.unsqueeze(2)
        squares = u.square().sum(-1).to(self.dtype).requires_grad_()
        with torch.enable_grad():
            F = self.riesz.of_antipodes(squares)
        a.energy.add_(F.detach().sum(-1, dtype=a.energy.dtype), alpha=factor)
        if a.slope is not None:
            (dF,) = torch.autograd.grad(F, squares, torch.full_like(F, 2 * factor))
            a.radial.addcmul_(dF, squares.detach())
            a.slope.addcmul_(u, (dF * a.inverse).unsqueeze(2))


def share_neurons(a: Block, b: Block) -> bool:
    """Whether some neuron may be in both blocks."""
    (_, n), (_, m) = a.inverse.shape, b.inverse.shape
    return a.picked is not None or (a.start < b.start + m and b.start < a.start + n)


def clear_own(tile: Tensor, a: Block, b: Block) -> None:
    """Set a tile ``[B, n, m]`` to 0 where a neuron of ``a`` meets itself in ``b``."""
    if a.picked is None:
        tile.diagonal(a.start - b.start, 1, 2).zero_()
    else:
        columns = torch.arange(b.start, b.start + tile.shape[2], device=tile.device)
        tile.masked_fill_(a.picked.unsqueeze(1) == columns, 0)


def wide_dtype(device: torch.device) -> torch.dtype:
    """Float64 where there is one: for sums, and for differences of near neighbours."""
    return torch.float32 if device.type == "mps" else torch.float64
