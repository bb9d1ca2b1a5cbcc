"""The tiles as an operation: for autograd, the transforms of ``torch.func``, and the compiler."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from mhe_core.autocast import without_autocast
from mhe_core.autograd_functions import signature_kept
from mhe_core.eager import opaque_operator
from mhe_core.energy import _tiles
from mhe_core.energy.pair_potential import PairPotential
from mhe_core.energy.potential import potential_with
from mhe_core.energy.reference import definition

__all__ = ["tiled_energy"]


def tiled_energy(
    neurons: Tensor,
    anchors: Tensor | None,
    pair: PairPotential,
    share: tuple[int, int] = (0, 1),
    *,
    rows: bool = False,
) -> Tensor:
    """The energy ``[...]`` of neurons ``[..., N, d]``, equal to :func:`reference.definition`.

    Differentiable any number of times; derivatives beyond the first are those of the definition.

    Args:
        neurons: ``[..., N, d]``.
        anchors: indices ``[M]``, or None for all pairs.
        pair: the potential of a pair.
        share: (k, n) for the k-th of n shares of the energy, which add up to the whole.
        rows: each neuron's (each anchor's) mean over its pairs, ``[..., N]`` or ``[..., M]``.
    """
    plain = type(neurons) in (Tensor, nn.Parameter) and not neurons.is_meta
    if torch.compiler.is_compiling() or not plain:  # fake tensors have a shape and no values
        key, half_space = pair.potential.key, pair.half_space
        found: tuple[Tensor, Tensor] = _compiled_energy(
            neurons, anchors, key, half_space, list(share), rows
        )
        return found[0]
    wanted = torch.is_grad_enabled() and neurons.requires_grad
    energy: Tensor = _TiledEnergy.apply(neurons, anchors, pair, share, rows, wanted)[0]
    return energy


@signature_kept
class _TiledEnergy(torch.autograd.Function):
    """The gradient is found along with the value, and waits for the backward pass."""

    @staticmethod
    def forward(
        neurons: Tensor,
        anchors: Tensor | None,
        pair: PairPotential,
        share: tuple[int, int],
        rows: bool,
        wanted: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if rows:  # what each counts in the gradient is not known before the backward pass
            return _tiles.value_and_gradient(neurons, anchors, pair, False, rows=True)[0], None
        return _tiles.value_and_gradient(neurons, anchors, pair, wanted, share)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]
    ) -> None:
        neurons, ctx.anchors, ctx.pair, ctx.share, ctx.rows, _ = inputs
        _, ctx.gradient = output
        if ctx.gradient is not None:
            ctx.mark_non_differentiable(ctx.gradient)
        ctx.save_for_backward(neurons)
        ctx.save_for_forward(neurons)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: Any) -> Any:
        (neurons,) = ctx.saved_tensors
        nothing: tuple[None, ...] = (None,) * 5
        if grad_output is None:
            return None, *nothing
        if torch.is_grad_enabled():  # a second derivative will be wanted
            with without_autocast(neurons.device):
                return _defined_gradient(ctx, neurons, grad_output), *nothing
        # Taken, not kept, so that it can be scaled in place; should this pass be repeated, the
        # gradient is computed again.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            weights = grad_output if ctx.rows else None
            with without_autocast(neurons.device):
                _, gradient = _tiles.value_and_gradient(
                    neurons, ctx.anchors, ctx.pair, True, ctx.share, rows=ctx.rows, weights=weights
                )
            if ctx.rows:
                return in_range_of(gradient, neurons.dtype), *nothing
        gradient = scaled(gradient, grad_output[..., None, None])
        return in_range_of(gradient, neurons.dtype), *nothing

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
        if tangent is None:
            return None, None
        (neurons,) = ctx.saved_tensors
        return _defined_tangent(ctx, neurons, tangent), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], neurons: Tensor, *options: Any
    ) -> tuple[tuple[Tensor, Tensor | None], tuple[int, int | None]]:
        if in_dims[1] is not None:
            raise ValueError("expected anchors that are the same for all of a vmap, got a batch")
        found: Any = _TiledEnergy.apply(neurons.movedim(in_dims[0] or 0, 0), *options)
        value, gradient = found
        return (value, gradient), (0, None if gradient is None else 0)


def _defined(ctx: Any, neurons: Tensor) -> Tensor:
    """The definition, of whose shares all are alike."""
    shares: int = ctx.share[1]
    return definition(neurons, ctx.anchors, ctx.pair, rows=ctx.rows) / shares


def _defined_gradient(ctx: Any, neurons: Tensor, grad_output: Tensor) -> Tensor:
    """The gradient by the definition, which can be differentiated again."""
    _, pull = _vjp(lambda w: _defined(ctx, w), neurons)
    gradient: Tensor = pull(grad_output)[0]
    return gradient


def _defined_tangent(ctx: Any, neurons: Tensor, tangent: Tensor) -> Tensor:
    """The derivative along a tangent, by the definition.

    Forward mode within forward mode is not to be had, so that this is the gradient's gradient: the
    product of the Jacobian's transpose and a vector is linear in the vector.
    """
    value, pull = _vjp(lambda w: _defined(ctx, w), neurons)
    _, push = _vjp(lambda v: pull(v)[0], torch.zeros_like(value))
    pushed: Tensor = push(tangent)[0]
    return pushed


def _vjp(function: Callable[[Tensor], Tensor], neurons: Tensor) -> tuple[Tensor, Any]:
    found: Any = torch.func.vjp(function, neurons)
    value, pull = found
    return value, pull


def scaled(gradient: Tensor | None, factor: Tensor) -> Tensor:
    """Their product, in the gradient's memory where there is one factor for it."""
    assert gradient is not None
    try:
        return gradient.mul_(factor)
    except RuntimeError:  # a batch of factors under vmap, or a gradient made in inference mode
        return gradient * factor


def in_range_of(gradient: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The gradient in that dtype, with what is beyond its range at its limit."""
    assert gradient is not None
    limit = torch.finfo(dtype).max
    return gradient.clamp_(-limit, limit).to(dtype)


# For the compiler, the energy is one operator that it does not look into.


def with_autograd(
    neurons: Tensor, compute: Callable[[], tuple[Tensor, Tensor | None]]
) -> tuple[Tensor, Tensor | None]:
    """The result, from a thread of its own: in an operator's own, autograd is off.

    It is needed there for pairs that are near, and for potentials that have a value only.
    """

    def on_the_same_stream() -> tuple[Tensor, Tensor | None]:
        if stream is None:
            return compute()
        with torch.cuda.stream(stream):
            return compute()

    stream = torch.cuda.current_stream(neurons.device) if neurons.is_cuda else None
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(on_the_same_stream).result()


@opaque_operator(
    "mhe_core::energy",
    "(Tensor neurons, Tensor? anchors, str potential, bool half_space, int[] share,"
    " bool rows) -> (Tensor, Tensor)",
)
def _compiled_energy(
    neurons: Tensor,
    anchors: Tensor | None,
    potential: str,
    half_space: bool,
    share: list[int],
    rows: bool,
) -> tuple[Tensor, Tensor]:
    """Energy and gradient (for rows, an empty one: their weights are not known yet)."""
    pair = PairPotential(potential_with(potential), half_space)
    part = (share[0], share[1])
    options = (anchors, pair, not rows, part if not rows else (0, 1))
    value, gradient = with_autograd(
        neurons, lambda: _tiles.value_and_gradient(neurons, *options, rows=rows)
    )
    return value, value.new_empty(0) if gradient is None else gradient


@_compiled_energy.register_fake
def _(
    neurons: Tensor,
    anchors: Tensor | None,
    potential: str,
    half_space: bool,
    share: list[int],
    rows: bool,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(neurons.dtype, torch.float32)
    *batch, N, _ = neurons.shape
    if not rows:
        value = neurons.new_empty(batch, dtype=dtype)
        return value, torch.empty_like(neurons, dtype=dtype, memory_format=torch.contiguous_format)
    M = N if anchors is None else anchors.shape[0]
    return neurons.new_empty([*batch, M], dtype=dtype), neurons.new_empty(0, dtype=dtype)


@opaque_operator(
    "mhe_core::energy_gradient",
    "(Tensor neurons, Tensor? anchors, str potential, bool half_space, Tensor weights) -> Tensor",
)
def _compiled_gradient(
    neurons: Tensor, anchors: Tensor | None, potential: str, half_space: bool, weights: Tensor
) -> Tensor:
    """The gradient of the weighted sum of the rows' energies."""
    pair = PairPotential(potential_with(potential), half_space)
    options = (anchors, pair, True)
    _, gradient = with_autograd(
        neurons, lambda: _tiles.value_and_gradient(neurons, *options, rows=True, weights=weights)
    )
    return in_range_of(gradient, neurons.dtype)


@_compiled_gradient.register_fake
def _(
    neurons: Tensor, anchors: Tensor | None, potential: str, half_space: bool, weights: Tensor
) -> Tensor:
    return torch.empty_like(neurons, memory_format=torch.contiguous_format)


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    neurons, anchors, ctx.potential, ctx.half_space, _, ctx.rows = inputs
    ctx.dtype = neurons.dtype
    ctx.save_for_backward(neurons if ctx.rows else None, anchors, output[1])


def _backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    neurons, anchors, gradient = ctx.saved_tensors
    nothing = (None,) * 5
    if ctx.rows:
        options = (anchors, ctx.potential, ctx.half_space, grad_output)
        return _compiled_gradient(neurons, *options), *nothing
    limit = torch.finfo(ctx.dtype).max
    found = (gradient * grad_output[..., None, None]).clamp(-limit, limit)
    return found.to(ctx.dtype), *nothing


_compiled_energy.register_autograd(_backward, setup_context=_set_up)
