"""What all regularizers share: neurons to energy, and a hook called once per training step."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from torch import Tensor, nn

from mhe_core.energy import Potential

__all__ = ["Regularizer"]


class Regularizer(nn.Module):
    """What every regularizer is: neurons to energy, and a hook called once per training step.

    What else it can do it says by attributes, which any ``nn.Module`` that is used as a regularizer
    may have, too.

    Attributes:
        potential: where the regularizer is the mean of a potential over the pairs of neurons (in
            half space, of neurons and antipodes) and nothing else: that potential. Such energies of
            equal layers are computed together, and can be shared out over processes.
        compressed_potential: the same where it is the mean not over the neurons but over what the
            method ``compressed`` makes of them, ``[..., N, k]`` or ``[..., P, N, k]``. On an
            accelerator such energies of layers of as many neurons are computed together, of those
            with an equal ``compressed_shape``, (k,) or (P, k).
        half_space: whether that is in half space.
        batched: whether ``forward`` and ``update`` take leading dimensions, ``[..., N, d]``, and
            return the mean over them. Where not (the default of other modules), they are called
            once for each group of a grouped convolution.
        takes_anchors: whether ``forward`` has an argument ``anchors``, indices ``[M]`` of neurons
            whose pairs with all others are counted.
        compiles: whether ``torch.compile`` can look into ``forward``; where False, the penalty of a
            network that has such a regularizer is computed as it is, at one break of the graph.
        depends_on_lengths: whether the value may depend on the neurons' lengths; a network's
            regularizer then hands it those in use, such as a weight norm's, which cost. Where
            False, it may be given any, and the conformance kit holds it to that.
        paper: where it was published; empty if nowhere.
        published_weight: the factor that its published program gives it in hidden layers; None
            where there is no such program.
        published_output_weight: the factor in the output layer; None where the program has another
            regularizer there.
        published_output_options: hyperparameters that differ in the output layer.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.

    Raises:
        ValueError: if ``num_neurons`` or ``dim`` is not a positive integer.
    """

    potential: Potential | None = None
    compressed_potential: Potential | None = None
    compressed_shape: tuple[int, ...] = ()
    half_space: bool = False
    batched: bool = True
    takes_anchors: bool = False
    compiles: bool = True
    depends_on_lengths: bool = True
    paper: ClassVar[str] = ""
    published_weight: ClassVar[float | None] = None
    published_output_weight: ClassVar[float | None] = None
    published_output_options: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Whose forward is its own is no bare potential, and has the anchors that forward takes."""
        super().__init_subclass__(**kwargs)
        if "forward" not in vars(cls):
            return
        for name in ("potential", "compressed_potential"):
            if name not in vars(cls):
                setattr(cls, name, None)
        if "takes_anchors" not in vars(cls):
            cls.takes_anchors = "anchors" in inspect.signature(cls.forward).parameters

    def __init__(self, num_neurons: int, dim: int) -> None:
        super().__init__()
        for name, value in (("num_neurons", num_neurons), ("dim", dim)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
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
