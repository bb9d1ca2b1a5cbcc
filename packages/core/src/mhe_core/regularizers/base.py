"""What all regularizers share: neurons to energy, and a hook called once per training step."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Regularizer"]


class Regularizer(nn.Module):
    """What every regularizer is: neurons to energy, and a hook called once per training step.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.

    Raises:
        ValueError: if ``num_neurons`` or ``dim`` is not a positive integer.
    """

    def __init__(self, num_neurons: int, dim: int) -> None:
        super().__init__()
        for name, value in (("num_neurons", num_neurons), ("dim", dim)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"expected {name} as a positive integer, got {value!r}")
        self.num_neurons = num_neurons
        self.dim = dim

    def forward(self, neurons: Tensor) -> Tensor:
        """Scalar energy of the neurons ``[..., N, d]``, the mean over leading dimensions.

        Pure: the same input and state give the same value.
        """
        raise TypeError(f"{type(self).__name__} does not define forward(neurons)")

    def update(self, neurons: Tensor, lr: float) -> None:
        """Advance the state by one training step, before the step's forward; default: nothing.

        Args:
            neurons: the layer's neurons ``[..., N, d]``.
            lr: the network's current learning rate.
        """

    def extra_repr(self) -> str:
        """The sizes, for ``print(module)``."""
        return f"num_neurons={self.num_neurons}, dim={self.dim}"
