r"""Projections of neurons to a low dimension, for compressive MHE (CoMHE).

In a high dimension the hyperspherical energy has many local minima and, near orthogonality, small
gradients. CoMHE (Lin et al., *Regularizing Neural Networks via Minimizing Hyperspherical Energy*,
CVPR 2020) minimises the energy of projected neurons P w instead. P is drawn at random; or trained
to preserve the angles between neurons; or, as an adversary, to bring the neurons together; or it
picks groups of dimensions.

This file is the mathematics: how projections are drawn, applied and trained. What happens when in
a training run is in comhe.py and learned_comhe.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from mhe_core.energy.conventions import convention_named
from mhe_core.energy.rows import directions

__all__ = [
    "angle_objective",
    "cosine_matrix",
    "dimension_groups",
    "draw_gaussian_",
    "gradient_step",
    "project",
    "select",
]

# On a CPU, into how many parts a draw is split, as a generator works on one thread only.
PARTS = 4


def project(neurons: Tensor, projection: Tensor) -> Tensor:
    """The projected neurons P w, by all projections in one product.

    Args:
        neurons: ``[..., N, d]``.
        projection: one projection ``[k, d]``, or several ``[P, k, d]``.

    Returns:
        ``[..., N, k]``, or ``[..., P, N, k]``, in the neurons' dtype.

    Example:
        >>> import torch
        >>> neurons, projections = torch.randn(5, 8), torch.randn(4, 3, 8)
        >>> project(neurons, projections).shape
        torch.Size([4, 5, 3])
    """
    projection = projection.to(neurons.dtype)
    if projection.ndim == 2:
        return neurons @ projection.mT
    compressed = neurons @ projection.flatten(0, 1).mT  # [..., N, P·k]
    apart: Tensor = compressed.unflatten(-1, projection.shape[:2]).transpose(-3, -2)
    return apart


def select(neurons: Tensor, groups: Tensor) -> Tensor:
    """The neurons' sub-vectors: those of their dimensions that are in each group.

    Args:
        neurons: ``[..., N, d]``.
        groups: indices of dimensions ``[G, k]``, int64.

    Returns:
        ``[..., G, N, k]``.

    Example:
        >>> import torch
        >>> select(torch.arange(8.0).view(2, 4), torch.tensor([[0, 2], [3, 1]])).tolist()
        [[[0.0, 2.0], [4.0, 6.0]], [[3.0, 1.0], [7.0, 5.0]]]
    """
    chosen = neurons.index_select(-1, groups.flatten())  # [..., N, G·k]
    apart: Tensor = chosen.unflatten(-1, groups.shape).transpose(-3, -2)
    return apart


def draw_gaussian_(projection: Tensor, seed: int, count: int) -> Tensor:
    """Fill a projection, in place and on its device, with independent N(0, 1) entries.

    A pure function of the seed, the count and the projection's shape: nothing else is drawn from
    or changed. (Devices of different types have different generators.)

    Args:
        projection: what to fill, ``[..., k, d]``, floating point. One on the meta device is left.
        seed: of the whole sequence of draws.
        count: which draw of the sequence this is.

    Returns:
        The projection.
    """
    device, key = projection.device, stream(seed, count, *projection.shape)
    if device.type == "meta":
        return projection
    if device.type != "cpu":
        return projection.normal_(generator=torch.Generator(device).manual_seed(key))
    inference = torch.is_inference_mode_enabled()  # which is a thread's own

    def fill(number: int, part: Tensor) -> None:
        with torch.inference_mode(inference):
            part.normal_(generator=torch.Generator().manual_seed(stream(key, number)))

    parts = projection.view(-1).chunk(PARTS)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, range(len(parts)), parts))
    return projection


def dimension_groups(dim: int, num_groups: int, group_dim: int, seed: int) -> Tensor:
    """Split the dimensions into groups of equal size, at random.

    A random permutation of the d dimensions is cut into ⌊d / group_dim⌋ disjoint groups. Where
    more groups are wanted, further permutations are cut; where fewer, or where ``group_dim`` does
    not divide d, some dimensions are in no group. No dimension is twice in one group.

    Args:
        dim: d.
        num_groups: G, the number of groups.
        group_dim: k, the dimensions in each, at most d.
        seed: of the permutations; the groups are a pure function of the arguments.

    Returns:
        Indices of dimensions ``[G, k]``, int64.

    Example:
        >>> groups = dimension_groups(dim=6, num_groups=3, group_dim=2, seed=0)
        >>> sorted(groups.flatten().tolist())
        [0, 1, 2, 3, 4, 5]
    """
    generator = torch.Generator().manual_seed(stream(seed, dim))
    disjoint = dim // group_dim
    rounds = -(-num_groups // disjoint)
    cuts = [
        torch.randperm(dim, generator=generator, device="cpu")[: disjoint * group_dim]
        for _ in range(rounds)
    ]
    return torch.cat(cuts).view(-1, group_dim)[:num_groups]


def angle_objective(neurons: Tensor, convention: str) -> Callable[[Tensor], Tensor]:
    r"""What an angle-preserving projection minimises.

    The Frobenius norm :math:`\lVert C(Pw) - C(w) \rVert_F`, where C is the N×N matrix of the
    neurons' cosines; the mean over leading dimensions.

    Args:
        neurons: ``[..., N, d]``.
        convention: of the cosines, see :func:`cosine_matrix`.

    Returns:
        A function of the projection ``[k, d]``, differentiable any number of times in it and in
        the neurons. Where all angles are preserved to rounding, it is 0 with gradient 0.
    """
    wanted = cosine_matrix(neurons, convention)
    rounding = (4 * wanted.shape[-1] * torch.finfo(wanted.dtype).eps) ** 2

    def objective(projection: Tensor) -> Tensor:
        errors = cosine_matrix(project(neurons, projection), convention) - wanted
        squares = errors.square().sum((-2, -1))
        preserved = squares <= rounding  # the square root has no derivative at 0
        return squares.masked_fill(preserved, 1.0).sqrt().masked_fill(preserved, 0.0).mean()

    return objective


def cosine_matrix(neurons: Tensor, convention: str) -> Tensor:
    r"""Cosines between all neurons ``[..., N, N]``; those of a zero neuron are 0.

    With ``convention="released_code"`` the lengths are smoothed as in the published programs, by
    :math:`\sqrt{\lVert w \rVert^2 + 10^{-4}}`, which shrinks the cosines a little.
    """
    u = directions(neurons, convention_named(convention).smoothing)
    return u @ u.mT


def gradient_step(
    objective: Callable[[Tensor], Tensor],
    projection: Tensor,
    lr: Tensor,
    *,
    weight_decay: float = 0.0,
    differentiable: bool = False,
) -> Tensor:
    """One step of plain gradient descent for a projection: P − lr·(∇ objective(P) + wd·P).

    The step is shortened, if need be, so that no entry moves by more than the largest entry of P:
    the energy of nearly coincident neurons is so steep that one step would leave nothing of P.

    Args:
        objective: a scalar function of the projection.
        projection: P, ``[k, d]``.
        lr: step size, a scalar tensor ≥ 0.
        weight_decay: wd.
        differentiable: keep the graph, so that the new projection can be differentiated with
            respect to what the objective depends on beside P.

    Returns:
        The new projection ``[k, d]``; P itself is not changed.
    """
    with torch.enable_grad():
        start = projection.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(
            objective(start), start, create_graph=differentiable, materialize_grads=True
        )
    start = start.detach()
    change = lr * (gradient + weight_decay * start)
    longest = change.detach().abs().amax()
    shortened = (start.abs().amax() / longest).nan_to_num(1.0).clamp_max(1.0)
    return start - shortened * change


def stream(*key: int) -> int:
    """A generator's seed, as good as independent for different keys."""
    digest = hashlib.blake2b(" ".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
