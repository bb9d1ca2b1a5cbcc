"""The rules of the interface: a function each, whose docstring is the rule."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mhe_core.registry import PluginError, create_regularizer

__all__ = ["CHECKS", "Subject"]

LR = 0.1  # handed to update
STEPS = 1e-2, 1e-3, 3e-4  # of finite differences in float32, which the rules ask for


class Subject(NamedTuple):
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


def check_scalar(subject: Subject) -> None:
    """A finite floating-point scalar, through which a gradient reaches the neurons."""
    _, gradient = _value_and_gradient(subject.make(), subject.neurons(), "forward")
    _require(bool(gradient.any()), "gradient: expected it to reach the neurons, got zero")


def check_degenerate(subject: Subject) -> None:
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


def check_pure(subject: Subject) -> None:
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


def check_dtypes(subject: Subject) -> None:
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


def check_update(subject: Subject) -> None:
    """``update(neurons, lr)``, if there is one, leaves neurons and their gradient alone."""
    regularizer = subject.make()
    neurons = subject.neurons().requires_grad_()
    before = neurons.detach().clone()
    _update(regularizer, neurons)
    _require(torch.equal(neurons, before), "update: expected it to leave the neurons alone")
    _require(neurons.grad is None, "update: expected no gradient left on the neurons")
    _value_and_gradient(regularizer, neurons.detach(), "forward after update")


def check_state_dict(subject: Subject) -> None:
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


def check_gradient(subject: Subject) -> None:
    """The gradient is that of finite differences, to 2 % of its length, in three directions."""
    regularizer, neurons = subject.make(), subject.neurons()
    _update(regularizer, neurons)
    _, gradient = _value_and_gradient(regularizer, neurons, "forward")
    for _ in range(3):
        direction = torch.randn_like(neurons)
        claimed = float((gradient.double() * direction).sum())
        slopes = []
        for step in STEPS:
            with torch.no_grad():
                ahead, behind = (
                    float(_forward(regularizer, neurons + move * direction, "forward"))
                    for move in (step, -step)
                )
            slopes.append((ahead - behind) / (2 * step))
        nearest = min(slopes, key=lambda slope: abs(slope - claimed))
        _require(
            abs(nearest - claimed) <= 0.02 * float(gradient.norm()),
            f"gradient: expected {nearest:.4g} in some direction, as finite differences have it, "
            f"got {claimed:.4g}",
        )


def check_order(subject: Subject) -> None:
    """The order of the neurons does not count: the same value, to 1e-3, in another order."""
    regularizer, neurons = subject.make(), subject.neurons()
    _update(regularizer, neurons)
    value = _forward(regularizer, neurons, "forward").float()
    other = neurons[torch.randperm(len(neurons))]
    permuted = _forward(regularizer, other, "forward with neurons in another order").float()
    _require(
        torch.allclose(permuted, value, rtol=1e-3, atol=1e-5),
        f"order: expected {value.item()} whatever the neurons' order, got {permuted.item()}",
    )


def check_lengths(subject: Subject) -> None:
    """With ``depends_on_lengths = False``, neurons of other lengths have one value, to 1e-3."""
    regularizer, neurons = subject.make(), subject.neurons()
    if getattr(regularizer, "depends_on_lengths", True):
        return
    _update(regularizer, neurons)
    value = _forward(regularizer, neurons, "forward").float()
    factors = 2.0 ** torch.randint(-4, 5, (len(neurons), 1))
    scaled = _forward(regularizer, factors * neurons, "forward with other lengths").float()
    _require(
        torch.allclose(scaled, value, rtol=1e-3, atol=1e-5),
        f"lengths: expected {value.item()} whatever the neurons' lengths, as depends_on_lengths "
        f"is False, got {scaled.item()}",
    )


def check_copies(subject: Subject) -> None:
    """A deep copy and a pickle continue as the original does, and leave it alone."""
    ways: dict[str, Callable[[nn.Module], nn.Module]] = {
        "deep copy": copy.deepcopy,
        "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    }
    for way, copied in ways.items():
        original, neurons = subject.make(), subject.neurons()
        _update(original, neurons)
        try:
            twin = copied(original)
        except Exception as error:
            raise AssertionError(f"{way}: expected one, got {_spelled(error)}") from error
        state = _copy(original.state_dict())
        for moment in ("at once", "one update later", "two updates later"):
            values = [_forward(module, neurons, f"{way}: forward") for module in (original, twin)]
            _require(
                torch.equal(*values),
                f"{way}: expected the same value {moment}, got {values[0].item()} and, copied, "
                f"{values[1].item()}",
            )
            torch.manual_seed(2)
            _update(twin, neurons)
            _require(
                _same(original.state_dict(), state),
                f"{way}: expected its update to leave the original alone",
            )
            torch.manual_seed(2)
            _update(original, neurons)
            state = _copy(original.state_dict())


def check_ranks(subject: Subject) -> None:
    """Two that are made and updated from equal random states have equal states, as ranks must.

    Both are made in this process, one after the other.
    """
    neurons, built = subject.neurons(), []
    for _ in range(2):
        torch.manual_seed(3)
        built.append(subject.make())
    for updates in range(4):
        first, second = (_forward(module, neurons, "forward") for module in built)
        _require(
            _same(*(module.state_dict() for module in built)) and torch.equal(first, second),
            f"ranks: expected equal states after {updates} updates from equal random states of "
            f"torch, got the values {first.item()} and {second.item()}; draw from torch's "
            "generators alone",
        )
        for module in built:
            torch.manual_seed(updates)
            _update(module, neurons)


def check_devices(subject: Subject) -> None:
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
    check_gradient,
    check_order,
    check_lengths,
    check_copies,
    check_ranks,
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
        value: Tensor = regularizer(neurons)
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
