"""Sums over all pairs of neurons, some rows of the N × N distances at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["sum_over_all_pairs"]

ENTRIES = 2**21  # distances that are held at a time


def sum_over_all_pairs(x: Tensor, potential: Callable[[Tensor], Tensor]) -> Tensor:
    """Σ_{i<j} potential(‖x_i − x_j‖²), a scalar; distances are computed again in backward.

    Args:
        x: ``[N, d]``.
        potential: of squared distances of any shape; finite, with a finite gradient, at 0.
    """
    rows = max(1, ENTRIES // len(x))
    parts = [
        checkpoint(
            _row_sums, x[k : k + rows], x[k:], potential,
            use_reentrant=False, preserve_rng_state=False,
        )
        for k in range(0, len(x), rows)
    ]  # fmt: skip
    return torch.cat(parts).sum()


def _row_sums(a: Tensor, b: Tensor, potential: Callable[[Tensor], Tensor]) -> Tensor:
    """For each of the first rows of ``b``, which are ``a``: the sum over the rows after it."""
    squares = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.mT
    after = torch.ones_like(squares, dtype=torch.bool).triu(1)
    return (potential(squares.clamp_min(0.0).masked_fill(~after, 1.0)) * after).sum(1)
