r"""What one step of the penalty may do to a neuron, and what its value may do to a loss.

An energy does not depend on a neuron's length, so its gradient goes as one over the length: rows
that start at zero and become tiny would be thrown away by their first gradient. Here each neuron's
gradient :math:`g_i` of the penalty is bounded relative to the neuron :math:`w_i`, as in unit-wise
adaptive gradient clipping (Brock et al., *High-Performance Large-Scale Image Recognition Without
Normalization*, ICML 2021, arXiv 2102.06171, eq. 3, without a least length):

.. math:: g_i \leftarrow g_i \min(1, \tau \lVert w_i \rVert / \lVert g_i \rVert).

It is the gradient of the penalty by itself that is bounded, whatever multiplies it later: with each
layer's neurons goes a probe, a zero that is added to the penalty, whose gradient is the factor that
the penalty has in the loss (a loss scale, one over the number of accumulated batches). So nothing
is computed twice, and where nothing is clipped, gradients keep their bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mhe_core.autograd_functions import signature_kept
from mhe_core.energy.rows import wide_dtype

__all__ = ["LARGEST_VALUE", "bounded_value", "clipped_neurons", "clipped_penalty"]

# A loss in float32 keeps four digits behind the point beside a penalty of this size.
LARGEST_VALUE = 1000.0


def clipped_penalty(
    penalty: Callable[[Tensor], Tensor], neurons: Tensor, clip_factor: float = 1.0
) -> Tensor:
    r"""``penalty(neurons)``, a scalar, bounded as :class:`NetworkRegularizer` bounds its own.

    .. math:: g \leftarrow g \cdot \min(1, \tau \lVert w \rVert / \lVert g \rVert)

    for the gradient g with respect to each neuron w (Brock et al. 2021, arXiv 2102.06171). For
    penalties on neurons that no module holds as a whole, such as class vectors that are shared out
    over processes.

    Args:
        penalty: the weighted energy of the neurons.
        neurons: ``[..., N, d]``.
        clip_factor: τ, the largest ratio of a gradient's length to its neuron's.

    Example:
        >>> neurons = torch.full((1, 2), 1e-3, requires_grad=True)
        >>> clipped_penalty(lambda w: 5 * w.sum(), neurons).backward()
        >>> bool(neurons.grad.norm() <= 1.0001 * neurons.norm())
        True
    """
    clipped, probe = clipped_neurons(neurons, clip_factor)
    return bounded_value(penalty(clipped) + probe)


def clipped_neurons(
    neurons: Tensor, clip_factor: float, penalties: int | None = None
) -> tuple[Tensor, Tensor]:
    """The neurons, with a gradient that is clipped, and the probe.

    Args:
        neurons: ``[..., N, d]``, each row with a gradient bound of its own.
        clip_factor: τ, the largest ratio of a gradient's length to its neuron's.
        penalties: how many are computed from them, each from ``neurons[k]``; None for one from all.

    Returns:
        The neurons themselves, and a 0, or one for each, to be added, without a factor, to the
        penalty that is computed from them.
    """
    found: tuple[Tensor, Tensor] = _ClippedNeurons.apply(neurons, clip_factor, penalties)
    return found


def bounded_value(penalty: Tensor) -> Tensor:
    """The penalty P, or ±C·(1 + ln(|P| / C)) where |P| is above C = 1000; the gradient is P's.

    A value of 1e12, which neurons that nearly coincide have, would leave no digit of the loss that
    it is added to.
    """
    value: Tensor = _BoundedValue.apply(penalty)
    return value


@signature_kept
class _ClippedNeurons(torch.autograd.Function):
    """The identity, and a zero; in the backward pass, the bound."""

    @staticmethod
    def forward(
        neurons: Tensor, clip_factor: float, penalties: int | None
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(neurons.dtype, torch.float32)
        shape = () if penalties is None else (penalties,)
        return neurons.view_as(neurons), neurons.new_zeros(shape, dtype=dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, int | None], output: Any) -> None:
        neurons, ctx.clip_factor, _ = inputs
        ctx.save_for_backward(neurons)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor | None, factor: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if gradient is None or factor is None:  # factor: a second derivative, which is not clipped
            return gradient, None, None
        (neurons,) = ctx.saved_tensors
        with torch.no_grad():  # the bound is a constant, in second derivatives too
            # Squares of 1e20, which such gradients have, overflow in float32.
            wide = wide_dtype(gradient.device)
            narrow = torch.promote_types(gradient.dtype, torch.float32)
            norms = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True, dtype=wide)
            limits = torch.linalg.vector_norm(neurons, dim=-1, keepdim=True, dtype=narrow)
            factor = factor.reshape(factor.shape + (1,) * (gradient.ndim - factor.ndim))
            limits = limits * (ctx.clip_factor * factor.abs())
            shrink = (limits / norms.clamp_min_(torch.finfo(wide).tiny)).clamp_max_(1.0)
        return (gradient * shrink.to(narrow)).to(gradient.dtype), None, None


@signature_kept
class _BoundedValue(torch.autograd.Function):
    """Grows with the logarithm from some size on, with gradient 1 all the same."""

    @staticmethod
    def forward(penalty: Tensor) -> Tensor:
        size = penalty.abs().clamp_min(LARGEST_VALUE)
        beyond = LARGEST_VALUE * (1 + (size / LARGEST_VALUE).log())
        return torch.where(size > LARGEST_VALUE, beyond.copysign(penalty), penalty)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient
