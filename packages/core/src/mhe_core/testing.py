"""The conformance kit: what every regularizer must do, for plug-in authors to run in one line.

::

    def test_conforms():
        check_regularizer("my_name")

Each check stands in a function of its own, and its docstring is the rule.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mhe_core.registry import PluginError, create_regularizer

__all__ = ["check_regularizer"]

LR = 0.1  # handed to update


def check_regularizer(
    regularizer: str | Callable[..., nn.Module],
    num_neurons: int = 16,
    dim: int = 8,
    **hyperparameters: Any,
) -> None:
    """Hold a regularizer against the rules of the interface.

    It maps neurons ``[N, d]`` to a finite scalar with a finite gradient, whatever the neurons; its
    forward is pure; it takes float32 and bfloat16; its state dict holds all of its state; its
    ``update``, if it has one, can be called once a step; and it gives the same on every device
    there is. The caller's random state is left as it was.

    Args:
        regularizer: a name for :func:`~mhe_core.create_regularizer`, or a factory called as
            ``factory(num_neurons, dim, **hyperparameters)``.
        num_neurons: N, at least 4.
        dim: d, at least 2. Choose both so that all of the regularizer is at work.
        **hyperparameters: handed to the factory.

    Raises:
        AssertionError: at the first rule that is broken, saying which, and how.
        ValueError: if ``num_neurons`` or ``dim`` is too small for the checks.

    Example:
        >>> from mhe_core.testing import check_regularizer
        >>> check_regularizer("mhe", s=1)
        >>> check_regularizer(lambda num_neurons, dim: torch.nn.Identity())
        Traceback (most recent call last):
            ...
        AssertionError: forward: expected a scalar tensor, got shape [16, 8]
    """
    if num_neurons < 4 or dim < 2:
        raise ValueError(f"expected num_neurons ≥ 4 and dim ≥ 2, got {num_neurons} and {dim}")
    subject = _Subject(regularizer, num_neurons, dim, hyperparameters)
    with torch.random.fork_rng():
        for check in CHECKS:
            torch.manual_seed(0)
            check(subject)


class _Subject(NamedTuple):
    """What is checked: made afresh for every check."""

    regularizer: str | Callable[..., nn.Module]
    num_neurons: int
    dim: int
    hyperparameters: dict[str, Any]

    def make(self) -> nn.Module:
        if not isinstance(self.regularizer, str):
            made = self.regularizer(self.num_neurons, self.dim, **self.hyperparameters)
            _require(isinstance(made, nn.Module), f"expected an nn.Module, got {made!r}")
            return made
        try:
            return create_regularizer(
                self.regularizer, self.num_neurons, self.dim, **self.hyperparameters
            )
        except PluginError as error:
            raise AssertionError(str(error)) from error

    def neurons(self) -> Tensor:
        return torch.randn(self.num_neurons, self.dim)


def check_scalar(subject: _Subject) -> None:
    """A finite floating-point scalar, through which a gradient reaches the neurons."""
    _, gradient = _value_and_gradient(subject.make(), subject.neurons(), "forward")
    _require(bool(gradient.any()), "gradient: expected it to reach the neurons, got zero")


def check_degenerate(subject: _Subject) -> None:
    """Value and gradient are finite where neurons coincide, are opposite, vanish or are huge."""
    neurons = subject.neurons()
    cases = {
        "two equal neurons": neurons.index_copy(0, torch.tensor([1]), neurons[:1]),
        "two opposite neurons": neurons.index_copy(0, torch.tensor([1]), -neurons[:1]),
        "a zero neuron": neurons.index_fill(0, torch.tensor([0]), 0.0),
        "all neurons on one axis": torch.eye(subject.dim)[:1].repeat(subject.num_neurons, 1),
        "neurons of length about 1e-4": neurons * 1e-4,
        "neurons of length about 1e4": neurons * 1e4,
    }
    for case, degenerate in cases.items():
        _value_and_gradient(subject.make(), degenerate, f"forward with {case}")


def check_pure(subject: _Subject) -> None:
    """Forward changes nothing, and the same input and state give the same value.

    Not the neurons, nor its own state, nor the random state, in train and in eval mode.
    """
    regularizer, neurons = subject.make(), subject.neurons()
    _update(regularizer, neurons)
    before, state = neurons.clone(), _copy(regularizer.state_dict())
    for mode in (True, False):
        regularizer.train(mode)
        random = torch.get_rng_state()
        first = _forward(regularizer, neurons, "forward")
        _require(torch.equal(neurons, before), "forward: expected it to leave the neurons alone")
        _require(
            _same(regularizer.state_dict(), state), "forward: expected it to leave its state alone"
        )
        _require(
            torch.equal(torch.get_rng_state(), random),
            "forward: expected it to leave torch's random state alone; draw in update instead",
        )
        second = _forward(regularizer, neurons, "forward")
        _require(
            torch.equal(first, second),
            f"forward: expected the same value twice, got {first.item()} and {second.item()}",
        )


def check_dtypes(subject: _Subject) -> None:
    """In bfloat16 the value is that of the same neurons in float32 to 5 %, or 0.05."""
    neurons = subject.neurons().bfloat16()
    regularizer = subject.make()
    reference, _ = _value_and_gradient(regularizer, neurons.float(), "forward in float32")
    value, _ = _value_and_gradient(regularizer, neurons, "forward in bfloat16")
    _require(
        torch.allclose(value.float(), reference.float(), rtol=0.05, atol=0.05),
        f"forward in bfloat16: expected about {reference.item()}, as in float32, "
        f"got {value.item()}; compute it in float32",
    )


def check_update(subject: _Subject) -> None:
    """``update(neurons, lr)``, if there is one, leaves neurons and their gradient alone."""
    regularizer = subject.make()
    neurons = subject.neurons().requires_grad_()
    before = neurons.detach().clone()
    _update(regularizer, neurons)
    _require(torch.equal(neurons, before), "update: expected it to leave the neurons alone")
    _require(neurons.grad is None, "update: expected no gradient left on the neurons")
    _value_and_gradient(regularizer, neurons.detach(), "forward after update")


def check_state_dict(subject: _Subject) -> None:
    """A state dict, saved and loaded with ``weights_only=True``, continues exactly.

    Loaded into a regularizer that was made from another random state, it gives the same value,
    and the same again after the next updates from equal random states.
    """
    original, neurons = subject.make(), subject.neurons()
    for _ in range(3):
        _update(original, neurons)
    file = io.BytesIO()
    torch.save(original.state_dict(), file)
    file.seek(0)
    resumed = subject.make()
    try:
        resumed.load_state_dict(torch.load(file, weights_only=True))
    except Exception as error:
        raise AssertionError(f"state dict: expected it to load, got {_spelled(error)}") from error
    for moment in ("after loading", "one update later", "two updates later"):
        values = [_forward(module, neurons, "forward") for module in (original, resumed)]
        _require(
            torch.equal(*values),
            f"state dict: expected the same value {moment}, got {values[0].item()} and, loaded, "
            f"{values[1].item()}; what a value depends on must be a buffer or parameter",
        )
        for module in (original, resumed):
            torch.manual_seed(2)
            _update(module, neurons)


def check_devices(subject: _Subject) -> None:
    """On every other device there is: the same value to 1e-3, after ``to(device)``."""
    regularizer, neurons = subject.make(), subject.neurons()
    reference = _forward(regularizer, neurons, "forward").float()
    for device in other_devices():
        regularizer.to(device)
        value, _ = _value_and_gradient(regularizer, neurons.to(device), f"forward on {device}")
        _require(
            torch.allclose(value.float().cpu(), reference, rtol=1e-3, atol=1e-3),
            f"forward on {device}: expected {reference.item()}, as on the CPU, got {value.item()}",
        )
        _update(regularizer, neurons.to(device))


def other_devices() -> list[str]:
    """Types of the devices beside the CPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [device for device, is_there in available.items() if is_there]


CHECKS = (
    check_scalar,
    check_degenerate,
    check_pure,
    check_dtypes,
    check_update,
    check_state_dict,
    check_devices,
)


def _value_and_gradient(
    regularizer: nn.Module, neurons: Tensor, what: str
) -> tuple[Tensor, Tensor]:
    """Both, known to be finite."""
    leaf = neurons.clone().requires_grad_()
    value = _forward(regularizer, leaf, what)
    _require(value.requires_grad, f"{what}: expected a value with a gradient to the neurons")
    try:
        (gradient,) = torch.autograd.grad(value, leaf)
    except RuntimeError as error:
        raise AssertionError(f"{what}: backward: got {_spelled(error)}") from error
    wrong = gradient[~gradient.isfinite()]
    _require(
        len(wrong) == 0,
        f"{what}: expected a finite gradient, got {len(wrong)} of {leaf.numel()} nan or infinite",
    )
    return value.detach(), gradient


def _forward(regularizer: nn.Module, neurons: Tensor, what: str) -> Tensor:
    try:
        value = regularizer(neurons)
    except Exception as error:
        raise AssertionError(f"{what}: expected a value, got {_spelled(error)}") from error
    _require(isinstance(value, Tensor), f"{what}: expected a scalar tensor, got {value!r}")
    _require(value.ndim == 0, f"{what}: expected a scalar tensor, got shape {list(value.shape)}")
    _require(value.is_floating_point(), f"{what}: expected floating point, got {value.dtype}")
    _require(bool(value.isfinite()), f"{what}: expected a finite value, got {value.item()}")
    return value


def _update(regularizer: nn.Module, neurons: Tensor) -> None:
    update = getattr(regularizer, "update", None)
    if update is None:
        return
    try:
        update(neurons, LR)
    except Exception as error:
        raise AssertionError(
            f"update: expected update(neurons, lr) to run, got {_spelled(error)}"
        ) from error


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()
    }


def _same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[key], right[key]) if isinstance(left[key], Tensor)
        else left[key] == right[key]
        for key in left
    )  # fmt: skip


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _spelled(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
