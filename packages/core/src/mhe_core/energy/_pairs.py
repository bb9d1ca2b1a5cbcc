"""The mean potential of many pairs of neurons, and its gradient, tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor

from mhe_core.energy.potential import Riesz

__all__ = ["Block", "PairMean"]

# Entries of the differences of near pairs that are held at a time.
DIFFERENCES = 2**19

# From so many multiplications on, symmetry saves more than a further call costs.
WORTH_SPLITTING = 2**25


class Block:
    """Some of the neurons, and where their energy and gradient are added up.

    Args:
        neurons: ``[B, n, d]``.
        inverse: one over their lengths ``[B, n]``, 0 for a zero row.
        energy: ``[B]``, to be added to.
        gradient: ``[B, n, d]``, to be written to, its content does not matter; None if not wanted.
        start: the first neuron's number among all; the others follow it.
        picked: ``[n]``, the neurons' numbers where they are not consecutive.
    """

    def __init__(
        self,
        neurons: Tensor,
        inverse: Tensor,
        energy: Tensor,
        gradient: Tensor | None,
        start: int = 0,
        picked: Tensor | None = None,
    ) -> None:
        self.neurons = neurons
        self.inverse = inverse
        self.energy = energy
        self.gradient = gradient
        self.start = start
        self.picked = picked
        self._radial: Tensor | None = None
        self._written = False

    def split_batch(self, size: int) -> list[Block]:
        """Parts of the batch."""
        B, N = self.inverse.shape
        if 0 < B <= size:
            return [self]
        return [self._part(slice(k, k + size), slice(0, N)) for k in range(0, B, size)]

    def split_rows(self, size: int) -> list[Block]:
        """Parts of the neurons."""
        B, N = self.inverse.shape
        if size >= N:
            return [self]
        return [self._part(slice(B), slice(k, k + size)) for k in range(0, N, size)]

    def _part(self, batch: slice, rows: slice) -> Block:
        neurons, inverse = self.neurons[batch, rows], self.inverse[batch, rows]
        gradient = None if self.gradient is None else self.gradient[batch, rows]
        part = Block(neurons, inverse, self.energy[batch], gradient, self.start + rows.start)
        # Allocated before any tile: made between tiles, these small tensors, which last, would keep
        # the heap from using the room of passing ones again.
        part._radial = None if gradient is None else torch.zeros_like(inverse)
        return part

    def pick(self, index: Tensor) -> Block:
        """Copies of some neurons, with a gradient of their own."""
        neurons, inverse = self.neurons[:, index], self.inverse[:, index]
        gradient = None if self.gradient is None else inverse.new_empty(neurons.shape)
        return Block(neurons, inverse, self.energy, gradient, picked=index)

    def add_product(self, slopes: Tensor, neurons: Tensor) -> None:
        """Add the product of a tile ``[B, n, m]`` and neurons ``[B, m, d]`` to the gradient."""
        if self.gradient is not None:
            self.gradient.baddbmm_(slopes, neurons, beta=int(self._written))
            self._written = True

    def add_radial(self, slopes: Tensor) -> None:
        """Add slopes ``[B, n]`` along the directions, to which the gradient is orthogonal."""
        if self.gradient is not None:
            self._radial = self.take_radial(slopes)

    def take_radial(self, slopes: Tensor) -> Tensor:
        """These slopes and those added before, which are now up to the caller."""
        before, self._radial = self._radial, None
        return slopes if before is None else before.add_(slopes)

    def add_slopes(self, batch: Tensor, i: Tensor, u: Tensor, du: Tensor) -> None:
        """Add slopes along some of the directions."""
        if self.gradient is not None:
            tangent = du - (u * du).sum(-1, keepdim=True) * u
            slope = (tangent * self.inverse[batch, i, None]).to(self.gradient.dtype)
            self.gradient.index_put_((batch, i), slope, accumulate=True)

    def finish(self) -> None:
        """Complete the gradient."""
        if self.gradient is None:
            return
        if not self._written:
            self.gradient.zero_()
        if self._radial is not None:
            along = self._radial * self.inverse.square()
            self.gradient.addcmul_(self.neurons, along.unsqueeze(2), value=-1)


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
        """Add the pairs of a neuron in ``a`` and one in ``b``, to both blocks' gradients.

        No neuron makes a pair with itself. Of a block with itself, each pair comes twice and
        counts half; this has to be the last of its tiles.
        """
        cosines = gram(a.neurons) if a is b else torch.bmm(a.neurons, b.neurons.mT)
        cosines.mul_(a.inverse.unsqueeze(2)).mul_(b.inverse.unsqueeze(1))
        shared = share_neurons(a, b)
        if shared:
            clear_own(cosines, a, b)
        sizes, near = cosines.abs(), None
        if sizes.amax().item() > self.limit:  # once per tile, the host waits for the device
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
        if a.gradient is not None:
            self._add_gradient(a, b, cosines, dF)
        if near is not None:
            self._add_near(a, b, near, weight)

    def _add_gradient(self, a: Block, b: Block, cosines: Tensor, dF: Tensor) -> None:
        """Add the slopes dF: dF_ij u_j to neuron i's, less its part along u_i."""
        along = cosines.mul_(dF)
        if b is a:
            torch.neg(a.take_radial(along.sum(2)), out=dF.diagonal(0, 1, 2))
        else:
            a.add_radial(along.sum(2))
            b.add_radial(along.sum(1))
        slopes = dF.mul_(a.inverse.unsqueeze(2)).mul_(b.inverse.unsqueeze(1))
        a.add_product(slopes, b.neurons)
        if b is not a:
            b.add_product(slopes.mT, a.neurons)

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
            if a.gradient is None:
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
        u = a.neurons * a.inverse.unsqueeze(2)
        squares = u.square().sum(-1).to(self.dtype).requires_grad_()
        with torch.enable_grad():
            F = self.riesz.of_antipodes(squares)
        a.energy.add_(F.detach().sum(-1, dtype=a.energy.dtype), alpha=factor)
        if a.gradient is not None:
            (dF,) = torch.autograd.grad(F, squares, torch.full_like(F, 2 * factor))
            a.gradient.addcmul_(u, (dF * a.inverse).unsqueeze(2))
            a.add_radial(dF * squares.detach())


def gram(x: Tensor, out: Tensor | None = None) -> Tensor:
    """All products of rows ``[B, n, d]``: symmetric, so at little over half the cost."""
    B, n, d = x.shape
    if out is None:
        out = x.new_empty(B, n, n)
    if n == 1 or n * n * d < WORTH_SPLITTING:
        return torch.bmm(x, x.mT, out=out)
    half = n // 2
    first, second = x[:, :half], x[:, half:]
    gram(first, out[:, :half, :half])
    gram(second, out[:, half:, half:])
    product = torch.bmm(first, second.mT, out=out[:, :half, half:])
    out[:, half:, :half].copy_(product.mT)
    return out


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
