"""Products of features with the directions of class vectors, the matrix that every head is made of.

Class vectors are not normalised: their norms are divided out of the product, which has fewer
entries than they where a batch has fewer images than they dimensions, and of the gradient only what
is radial is taken away. (By autograd the division alone takes longer than the product.)
"""

from __future__ import annotations

from typing import Any

import torch
from mhe_core.autocast import without_autocast
from mhe_core.autograd_functions import signature_kept
from torch import Tensor

__all__ = ["SHORTEST", "products_with_directions", "unit_rows"]

SHORTEST = 1e-6  # a shorter row has no direction


def unit_rows(rows: Tensor) -> Tensor:
    """Rows ``[N, d]`` divided by their lengths.

    A row shorter than 1e-6 has no direction: it stays as it is and passes gradients on as they
    come, where a division by the least of numbers would give some of 1e13.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    short = lengths.detach() < SHORTEST
    return rows / lengths.masked_fill(short, 1.0)


def products_with_directions(features: Tensor, weight: Tensor) -> Tensor:
    """``features @ unit_rows(weight).T``, [B, C], for features ``[B, d]`` and class vectors [C, d].

    Example:
        >>> products_with_directions(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[2.2000]])
    """
    products: Tensor = _Products.apply(features, weight)[0]
    return products


def defined(features: Tensor, weight: Tensor) -> Tensor:
    """The definition, which autograd can differentiate again."""
    return features @ unit_rows(weight).mT


@signature_kept
class _Products(torch.autograd.Function):
    """Products, one over the class vectors' norms, and which are too short for a direction."""

    generate_vmap_rule = True

    @staticmethod
    def forward(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        norms = torch.linalg.vector_norm(weight, dim=-1)
        short = norms < SHORTEST
        inverse = norms.masked_fill_(short, 1.0).reciprocal_()
        return (features @ weight.mT).mul_(inverse), inverse, short

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Any) -> None:
        _, inverse, short = output
        ctx.mark_non_differentiable(inverse, short)
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None]:
        with without_autocast(gradient.device):
            return _Products.gradients(ctx, gradient)

    @staticmethod
    def gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """With respect to the features and the class vectors."""
        features, weight, products, inverse, short = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative will be wanted
            found: Any = torch.func.vjp(defined, features, weight)
            of_features, of_weight = found[1](gradient)
            return of_features, of_weight
        scaled = gradient * inverse
        of_features = scaled @ weight if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_features, None
        radial = (gradient * products).sum(0).mul_(inverse.square()).masked_fill_(short, 0.0)
        of_weight = (scaled.mT @ features).addcmul_(weight, radial.unsqueeze(1), value=-1)
        return of_features, of_weight
