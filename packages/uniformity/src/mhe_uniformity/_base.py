"""What the regularizers share: their arguments, checked; a value for each matrix of neurons."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from mhe_core import Regularizer
from mhe_core.autocast import without_autocast
from mhe_core.energy.rows import working_copy
from torch import Tensor

__all__ = ["Published", "check_choice", "check_neurons"]


class Published(Regularizer):
    """A regularizer from a paper, whose program's constants are one of its variants.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"``, the definition, or a name of a published program.

    Attributes:
        paper: where it was published.
        published_weight: the factor that the published program gives it in hidden layers, or, if
            the program covers these only, of class vectors or features; None where no program
            has been published.
        published_output_weight: the factor in the output layer.
        published_output_options: hyperparameters that differ in the output layer.
        variants: what ``variant`` can be.
        directional: those of them that see directions only, whatever the neurons' lengths.
    """

    paper: ClassVar[str]
    published_weight: ClassVar[float | None] = None
    published_output_weight: ClassVar[float | None] = None
    published_output_options: ClassVar[dict[str, Any]] = {}
    variants: ClassVar[tuple[str, ...]] = ("paper", "released")
    directional: ClassVar[tuple[str, ...]] = ("paper",)

    def __init__(self, num_neurons: int, dim: int, *, variant: str = "paper") -> None:
        super().__init__(num_neurons, dim)
        check_choice("variant", variant, self.variants)
        self.variant = variant

    @property
    def depends_on_lengths(self) -> bool:  # type: ignore[override]
        """By what a program adds to norms, or leaves undivided by them."""
        return self.variant not in self.directional

    def forward(self, neurons: Tensor) -> Tensor:
        """Scalar loss of the neurons ``[..., N, d]``, the mean over leading dimensions.

        Computed in at least float32, whatever autocast says.

        Raises:
            TypeError: if the neurons are not a floating-point tensor.
            ValueError: if they are not rows of the dimension that the regularizer was made for.
        """
        check_neurons(neurons, self.dim)
        with without_autocast(neurons.device):
            x = self.prepared(neurons)
            if x.is_meta:  # a scalar without a value: some losses look at theirs on the way
                return x.sum(dtype=torch.promote_types(x.dtype, torch.float32))
            if x.ndim == 2:  # not unbound, which would copy the gradient
                return self.loss(x)
            return torch.stack([self.loss(matrix) for matrix in x.flatten(0, -3)]).mean()

    def prepared(self, neurons: Tensor) -> Tensor:
        """The neurons in at least float32, with a gradient that stays in their dtype's range."""
        return working_copy(neurons)

    def loss(self, x: Tensor) -> Tensor:
        """The loss of one matrix ``[N, d]``, in at least float32."""
        raise TypeError(f"{type(self).__name__} does not define loss(x)")

    def options(self) -> dict[str, Any]:
        """The hyperparameters, for ``print(module)``."""
        return {"variant": self.variant}

    def extra_repr(self) -> str:
        """Sizes and hyperparameters."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.options().items())
        return f"{super().extra_repr()}, {options}"


def check_neurons(neurons: Tensor, dim: int) -> None:
    """Raise an error that says what was expected and what came."""
    if not isinstance(neurons, Tensor) or not neurons.is_floating_point():
        got = neurons.dtype if isinstance(neurons, Tensor) else type(neurons).__name__
        raise TypeError(f"expected neurons as a floating-point tensor, got {got}")
    if neurons.ndim < 2 or neurons.shape[-1] != dim or neurons.numel() == 0:
        raise ValueError(
            f"expected neurons as rows, [..., N, {dim}] with N at least 1, "
            f"got {list(neurons.shape)}"
        )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a ValueError if the value is none of the choices."""
    if value not in choices:
        raise ValueError(f"expected {name} to be one of {choices}, got {value!r}")
