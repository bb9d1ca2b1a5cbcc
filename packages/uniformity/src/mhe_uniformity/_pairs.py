"""Sums over all pairs of neurons, some rows of the N × N distances at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from mhe_core.autocast import without_autocast
from torch import Tensor

__all__ = ["sum_over_all_pairs"]

ENTRIES = 2**20  # distances that are held at a time

Potential = Callable[[Tensor], Tensor]


def sum_over_all_pairs(x: Tensor, potential: Potential) -> Tensor:
    """Σ_{i<j} potential(‖x_i − x_j‖²), a scalar.

    Args:
        x: ``[N, d]``.
        potential: of squared distances of any shape; finite, with a finite gradient, at 0.
    """
    return _SumOverAllPairs.apply(x, potential)


class _SumOverAllPairs(torch.autograd.Function):
    """Distances are computed again in the backward pass, part by part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, potential: Potential) -> Tensor:
        ctx.save_for_backward(x)
        ctx.potential = potential
        return torch.stack([_sum(x[rows], x[rows.start :], potential) for rows in _parts(x)]).sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with without_autocast(x.device):  # in which backward may be called
            return _slope(x, ctx.potential, grad_output), None


def _slope(x: Tensor, potential: Potential, grad_output: Tensor) -> Tensor:
    """The gradient of the sum, times ``grad_output``."""
    if torch.is_grad_enabled():  # a second derivative will be wanted
        total = _sum(x, x, potential)
        (slope,) = torch.autograd.grad(total, x, grad_output, create_graph=True)
        return slope
    gradient = torch.zeros_like(x)
    for rows in _parts(x):
        a, b = x[rows].requires_grad_(), x[rows.start :].requires_grad_()
        with torch.enable_grad():
            total = _sum(a, b, potential)
        of_a, of_b = torch.autograd.grad(total, (a, b), grad_output)
        gradient[rows] += of_a
        gradient[rows.start :] += of_b
    return gradient


def _parts(x: Tensor) -> Iterator[slice]:
    rows = max(1, ENTRIES // len(x))
    for start in range(0, len(x), rows):
        yield slice(start, min(start + rows, len(x)))


def _sum(a: Tensor, b: Tensor, potential: Potential) -> Tensor:
    """Over the pairs of a row of ``a``, which are the first of ``b``, and a later row of ``b``."""
    squares = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.mT
    later = torch.ones_like(squares, dtype=torch.bool).triu(1)
    return (potential(squares.clamp_min(0.0).masked_fill(~later, 1.0)) * later).sum()
