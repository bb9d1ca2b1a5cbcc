"""What a potential is: a function of the squared chord, which is all that one has to write."""

from __future__ import annotations

import itertools
import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor

__all__ = ["NEAR", "Potential", "potential_numbered", "value_and_pull"]

# Below this squared chord, 2 − 2c has lost too many digits to cancellation (at 0.25 it keeps six
# of float32's seven): nearer pairs are measured by the difference of the vectors.
NEAR = 0.25

_numbers = itertools.count()
_by_number: weakref.WeakValueDictionary[int, Potential] = weakref.WeakValueDictionary()


class Potential(ABC):
    """A potential of two directions; :meth:`value` is all that one has to write.

    With it, :func:`mhe_core.hyperspherical_energy` has for this potential what it has for its own:
    tiles, half space, anchors, rows spread over processes, second derivatives, and finite values
    (a chord that is too small for the dtype counts as the least that is not). Equal layers of a
    network are computed together where their potentials are equal: make it a frozen dataclass.

    Attributes:
        smoothing: an entry that the neurons' norms have beside their own, 0 for the definition.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch
        >>> from mhe_core import hyperspherical_energy
        >>> @dataclass(frozen=True)
        ... class Hinge(Potential):
        ...     margin: float = 1.0
        ...     def value(self, squared_chord):
        ...         return (self.margin - squared_chord.sqrt()).clamp_min(0.0)
        >>> hyperspherical_energy(torch.eye(3), potential=Hinge(margin=2.0))  # 2 − √2
        tensor(0.5858)
    """

    smoothing: float = 0.0

    def __new__(cls, *args: object, **kwargs: object) -> Potential:
        """Number it: a compiled program holds numbers and strings, and no objects."""
        self = super().__new__(cls)
        if cls.key is Potential.key:
            number = next(_numbers)
            object.__setattr__(self, "_number", number)
            _by_number[number] = self
        return self

    def __getstate__(self) -> dict[str, object]:
        """All but the number, which a copy has of its own."""
        return {name: value for name, value in vars(self).items() if name != "_number"}

    @abstractmethod
    def value(self, squared_chord: Tensor) -> Tensor:
        """The potential of each pair, elementwise and differentiable.

        Args:
            squared_chord: ‖u − v‖², in (0, 4].
        """

    def value_and_derivative(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """The potential and its derivative with respect to the cosine; by default by autograd.

        Args:
            c: cosines within ±:meth:`largest_cosine`; not to be changed.
        """
        with torch.inference_mode(False):
            value, pull = value_and_pull(lambda c: self.value(2 - 2 * c), c.clone())
            return value, pull(torch.ones_like(value))[0]

    def both_sides(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """f(c) + f(−c), what a pair of lines pays, and its derivative."""
        value, derivative = self.value_and_derivative(c)
        opposite, opposite_derivative = self.value_and_derivative(-c)
        return value + opposite, derivative - opposite_derivative

    def of_chords(self, near: Tensor, far: Tensor) -> Tensor:
        """The potential from ‖u − v‖² and ‖u + v‖², the latter with its digits near the antipode.

        Differentiable any number of times; below :meth:`smallest_squared_chord` it stops growing.
        """
        return self.value(near.clamp_min(self.smallest_squared_chord(near.dtype)))

    def of_cosine(self, c: float) -> float:
        """The potential of one pair; infinite where it has no finite value."""
        value = self.value(torch.tensor(2 - 2 * c, dtype=torch.float64))
        return float(value) if value.isfinite() else math.inf

    def smallest_squared_chord(self, dtype: torch.dtype) -> float:
        """The squared chord below which the potential stops growing."""
        return torch.finfo(dtype).eps ** 2

    def largest_cosine(self, dtype: torch.dtype) -> float:
        """Pairs beyond it have cosines with too few digits, or a potential that has to be cut."""
        return 1 - max(NEAR, self.smallest_squared_chord(dtype)) / 2

    @property
    def key(self) -> str:
        """What :func:`potential_with` finds it by, in this process."""
        return f"#{self._number}"  # type: ignore[attr-defined]


def value_and_pull(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, Any]:
    """The function's value, and what gives the inputs' gradients for one of the value, once.

    Not by ``torch.func.vjp``, which refuses to work where hooks on saved tensors are set, as
    activation checkpointing does. They are kept out: nothing of this outlives the call.
    """
    with torch.enable_grad(), ExitStack() as stack:
        # Within a transform of torch.func, none can be set, and so none need be kept out.
        with suppress(RuntimeError):
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_itself, _itself))
        leaves = [x.detach().requires_grad_() for x in inputs]
        value = function(*leaves)

    def pull(grad_output: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(value, leaves, grad_output, materialize_grads=True)

    return value.detach(), pull


def _itself(saved: Tensor) -> Tensor:
    return saved


def potential_numbered(number: int) -> Potential:
    """The potential of this process that has the number."""
    return _by_number[number]
