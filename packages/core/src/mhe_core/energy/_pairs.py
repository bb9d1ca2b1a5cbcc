"""The potentials of many pairs of neurons, and their gradient, tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor

from mhe_core.energy._waits import Doubt
from mhe_core.energy.pair_potential import PairPotential, steepest_derivative
from mhe_core.energy.potential_base import value_and_pull

__all__ = ["Block", "PairMean"]

# Entries of the differences of near pairs that are held at a time.
DIFFERENCES = 2**19

# From so many multiplications on, symmetry saves more than a further call costs.
WORTH_SPLITTING_ON_CPU, WORTH_SPLITTING = 2**25, 2**33


class Block:
    """Some of the neurons, and where their energy and gradient are added up.

    Args:
        neurons: ``[B, n, d]``.
        inverse: one over their norms ``[B, n]``, 0 for a zero row.
        energy: ``[B]``, or ``[B, n]`` for the energy of each row, to be added to.
        gradient: ``[B, n, d]``, to be written to, its content does not matter; None if not wanted.
        start: the first neuron's number among all; the others follow it.
        indices: ``[n]``, the neurons' numbers where they are not consecutive.
        weights: ``[B, n]``, what the energy of each row counts in the gradient; None for 1.
    """

    def __init__(
        self,
        neurons: Tensor,
        inverse: Tensor,
        energy: Tensor,
        gradient: Tensor | None,
        start: int = 0,
        indices: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        self.neurons = neurons
        self.inverse = inverse
        self.energy = energy
        self.gradient = gradient
        self.start = start
        self.indices = indices
        self.weights = weights
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
        energy = self.energy[batch, rows] if self.energy.ndim == 2 else self.energy[batch]
        part = Block(
            self.neurons[batch, rows],
            self.inverse[batch, rows],
            energy,
            None if self.gradient is None else self.gradient[batch, rows],
            self.start + rows.start,
            weights=None if self.weights is None else self.weights[batch, rows],
        )
        # Allocated before any tile: made between tiles, these small tensors, which last, would keep
        # the heap from using the room of passing ones again.
        part._radial = None if self.gradient is None else torch.zeros_like(part.inverse)
        return part

    def pick(self, index: Tensor, energy: Tensor, weights: Tensor | None) -> Block:
        """Copies of some neurons, with a gradient of their own."""
        neurons, inverse = self.neurons[:, index], self.inverse[:, index]
        gradient = None if self.gradient is None else inverse.new_empty(neurons.shape)
        return Block(neurons, inverse, energy, gradient, indices=index, weights=weights)

    def add_energy(self, F: Tensor, dim: int, factor: float) -> None:
        """Add the energies of a tile, whose dimension of other neurons is ``dim``."""
        if self.energy.ndim == 2:
            self.energy.add_(F.sum(dim, dtype=self.energy.dtype), alpha=factor)
        else:
            self.energy.add_(F.sum((1, 2), dtype=self.energy.dtype), alpha=factor)

    def add_product(self, tile: Tensor, neurons: Tensor) -> None:
        """Add the product of a tile ``[B, n, m]`` and neurons ``[B, m, d]`` to the gradient."""
        if self.gradient is not None:
            self.gradient.baddbmm_(tile, neurons, beta=int(self._written))
            self._written = True

    def add_radial(self, radial: Tensor) -> None:
        """Add what the gradient has ``[B, n]`` along the directions, and has not to have."""
        if self.gradient is not None:
            self._radial = self.take_radial(radial)

    def take_radial(self, radial: Tensor) -> Tensor:
        """This and what was added before, which is now up to the caller."""
        before, self._radial = self._radial, None
        return radial if before is None else before.add_(radial)

    def add_gradient(self, batch: Tensor, i: Tensor, u: Tensor, du: Tensor) -> None:
        """Add gradients at some of the directions."""
        if self.gradient is not None:
            tangent = du - (u * du).sum(-1, keepdim=True) * u
            gradient = (tangent * self.inverse[batch, i, None]).to(self.gradient.dtype)
            self.gradient.index_put_((batch, i), gradient, accumulate=True)

    def finish(self, scale: float) -> None:
        """Complete the gradient; what is radial is to be scaled."""
        if self.gradient is None:
            return
        if not self._written:
            self.gradient.zero_()
        if self._radial is not None:
            along = self._radial * self.inverse.square()
            self.gradient.addcmul_(self.neurons, along.unsqueeze(2), value=-scale)


class PairMean:
    """Adds up the potential of pairs, times ``scale``, and its gradient.

    Of blocks that have an energy for each row, a pair counts in both of its rows' energies.

    Args:
        pair: the potential of a pair.
        scale: a factor of all; one over the number of pairs makes the sum a mean.
        dtype: the dtype whose range the energy has to keep to.
        doubts: if given, the host is not to wait for the device: whether there was a pair too near
            for its cosine is added to it, and nothing is done about such pairs.
    """

    def __init__(
        self,
        pair: PairPotential,
        scale: float,
        dtype: torch.dtype,
        doubts: list[Doubt] | None = None,
    ) -> None:
        self.pair = pair
        self.scale = scale
        self.dtype = dtype
        self.doubts = doubts
        self.limit = pair.potential.largest_cosine(dtype)
        # Derivatives are scaled last, along with the norms, unless their sums might overflow.
        steep = steepest_derivative(pair, dtype) > torch.finfo(dtype).max * 1e-10
        self.first, self.last = (scale, 1.0) if steep else (1.0, scale)

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
        near = self._near(cosines, a, b)
        F, dF = self.pair.value_and_derivative(cosines)
        if shared:
            clear_own(F, a, b)
            clear_own(dF, a, b)
        if near is not None:
            F.masked_fill_(near, 0.0)
            dF.masked_fill_(near, 0.0)
        self._add_energy(a, b, F)
        if a.gradient is not None:
            self._add_gradient(a, b, cosines, dF)
        if near is not None:
            self._add_near(a, b, near)

    def _near(self, cosines: Tensor, a: Block, b: Block) -> Tensor | None:
        """Which pairs have cosines with too few digits; None if there is none."""
        if self.doubts is not None:
            self.doubts.append(Doubt.of(cosines, -self.limit, self.limit))
            return None
        least, greatest = cosines.aminmax()  # once per tile, the host waits for the device
        if float(least) >= -self.limit and float(greatest) <= self.limit:
            return None
        near = cosines.abs() > self.limit
        clear_own(near, a, b)
        return near

    def _add_energy(self, a: Block, b: Block, F: Tensor) -> None:
        if a.energy.ndim == 1:
            a.add_energy(F, 2, self.scale * (0.5 if a is b else 1.0))
            return
        a.add_energy(F, 2, self.scale)
        if a is not b and a.indices is None:
            b.add_energy(F, 1, self.scale)

    def _add_gradient(self, a: Block, b: Block, cosines: Tensor, dF: Tensor) -> None:
        """Add the gradients dF_ij u_j to neuron i's, less its part along u_i."""
        weights = pair_weights(a, b)
        if weights is not None:
            dF.mul_(weights)
        if self.first != 1:
            dF.mul_(self.first)
        along = cosines.mul_(dF)
        if b is a:
            torch.neg(a.take_radial(along.sum(2)), out=dF.diagonal(0, 1, 2))
        else:
            a.add_radial(along.sum(2))
            b.add_radial(along.sum(1))
        inverse = a.inverse if self.last == 1 else a.inverse * self.last
        tile = dF.mul_(inverse.unsqueeze(2)).mul_(b.inverse.unsqueeze(1))
        a.add_product(tile, b.neurons)
        if b is not a:
            b.add_product(tile.mT, a.neurons)

    def _add_near(self, a: Block, b: Block, near: Tensor) -> None:
        """Add those pairs whose cosines have too few digits, from the neurons themselves."""
        weights = pair_weights(a, b)
        for pairs in near.nonzero().split(max(1, DIFFERENCES // a.neurons.shape[2])):
            batch, i, j = pairs.unbind(1)
            u, v = self._directions(a, batch, i), self._directions(b, batch, j)
            if a.gradient is None:
                F, pull = self._of_pairs(u, v), None
            else:
                F, pull = value_and_pull(self._of_pairs, u, v)
            values = F.to(a.energy.dtype)
            if a.energy.ndim == 1:
                half = 0.5 if a is b else 1.0
                a.energy.index_add_(0, batch, values, alpha=half * self.scale)
            else:
                a.energy.index_put_((batch, i), values * self.scale, accumulate=True)
                if a is not b and a.indices is None:
                    b.energy.index_put_((batch, j), values * self.scale, accumulate=True)
            if pull is None:
                continue
            grad_output = torch.full_like(F, self.scale)
            if weights is not None:
                grad_output.mul_(weights.expand_as(near)[batch, i, j])
            du, dv = pull(grad_output)
            a.add_gradient(batch, i, u, du)
            if b is not a:
                b.add_gradient(batch, j, v, dv)

    def _of_pairs(self, u: Tensor, v: Tensor) -> Tensor:
        return self.pair.of_pairs(u, v, self.dtype)

    def _directions(self, a: Block, batch: Tensor, i: Tensor) -> Tensor:
        """Some of the directions, with more digits than the tile's."""
        neurons = a.neurons[batch, i].to(a.energy.dtype)
        if self.pair.smoothing:
            return neurons * a.inverse[batch, i, None]
        norms: Tensor = torch.linalg.vector_norm(neurons, dim=-1, keepdim=True)
        return neurons / norms

    def add_antipodes(self, a: Block) -> None:
        """In half space, add the pairs of each neuron and its antipode.

        Once for the energy of a row; half, as other pairs of a block with itself, where a pair
        has two rows in one energy. (Anchors have each pair once: they add it twice.)
        """
        if not self.pair.half_space:
            return
        rows = a.energy.ndim == 2
        factor = self.scale * (1.0 if rows or a.indices is not None else 0.5)
        if not self.pair.smoothing:
            n = 1 if rows else a.inverse.shape[1]
            a.energy.add_(factor * n * self.pair.potential.of_cosine(-1.0))
            return
        u = a.neurons * a.inverse.unsqueeze(2)
        squares = u.square().sum(-1).to(self.dtype)
        F, pull = value_and_pull(self._of_antipodes, squares)
        values = F.to(a.energy.dtype)
        a.energy.add_(values if rows else values.sum(-1), alpha=factor)
        if a.gradient is not None:
            grad_output = torch.full_like(F, 2 * factor / self.last)
            if a.weights is not None:
                grad_output.mul_(a.weights)
            (dF,) = pull(grad_output)
            a.gradient.addcmul_(u, (dF * a.inverse).unsqueeze(2), value=self.last)
            a.add_radial(dF * squares)

    def _of_antipodes(self, squares: Tensor) -> Tensor:
        """The potentials of u and −u, for rows u of those squared norms."""
        return self.pair.potential.of_chords(2 + 2 * squares, 2 - 2 * squares)


def pair_weights(a: Block, b: Block) -> Tensor | None:
    """What the derivative of each pair of a tile counts; None for 1.

    Where each row has an energy, a pair is in two of them (one if ``a`` has the anchors).
    """
    if a.weights is None:
        return None
    if a.indices is not None or b.weights is None:
        return a.weights.unsqueeze(2)
    return a.weights.unsqueeze(2) + b.weights.unsqueeze(1)


def gram(x: Tensor, out: Tensor | None = None) -> Tensor:
    """All products of rows ``[B, n, d]``: symmetric, so at little over half the cost."""
    B, n, d = x.shape
    if out is None:
        out = x.new_empty(B, n, n)
    worth_splitting = WORTH_SPLITTING_ON_CPU if x.device.type == "cpu" else WORTH_SPLITTING
    if n == 1 or n * n * d < worth_splitting:
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
    return a.indices is not None or (a.start < b.start + m and b.start < a.start + n)


def clear_own(tile: Tensor, a: Block, b: Block) -> None:
    """Set a tile ``[B, n, m]`` to 0 where a neuron of ``a`` meets itself in ``b``."""
    if a.indices is None:
        tile.diagonal(a.start - b.start, 1, 2).zero_()
    else:
        columns = torch.arange(b.start, b.start + tile.shape[2], device=tile.device)
        tile.masked_fill_(a.indices.unsqueeze(1) == columns, 0)
