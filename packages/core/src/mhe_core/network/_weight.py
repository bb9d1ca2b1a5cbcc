"""One weight of a network: what it is computed from, how, and where its neurons are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mhe_core.autocast import without_autocast

__all__ = ["Orientation", "Weight", "as_rows", "dense", "gathered"]

Orientation = Callable[[Tensor], Tensor]


def as_rows(weight: Tensor) -> Tensor:
    """Neurons along the first dimension, flattened: ``[N, d]``."""
    return weight.flatten(1)


@dataclass(frozen=True)
class Weight:
    """A matrix of neurons in a module, as the forward pass uses it.

    It describes the weight and computes nothing until :meth:`neurons` is called.

    Attributes:
        module: that holds it; of an adapter, the module inside.
        sources: the tensors that the neurons' directions are computed from.
        read: returns the weight in use, in the layout that the module stores, differentiable with
            respect to ``sources``. It must not change the module. With ``read_whole``, only the
            neurons' directions have to be those in use.
        orient: from that layout to neurons ``[N, d]`` or ``[groups, N / groups, d]``.
        usual: whether a network's regularizer covers it without being asked to: weights that
            multiply the layer's input, but no embeddings, and no parameters of unknown use.
        replaces: modules that are parts of this weight, and hold no layers of their own.
        problem: why it cannot be read, where it cannot: a sentence for messages.
        scales: tensors beside ``sources`` that only the neurons' lengths are computed from.
        read_whole: returns the weight with the neurons' lengths, too, differentiable with respect
            to ``sources`` and ``scales``; None where ``read`` does.
    """

    module: nn.Module
    sources: tuple[Tensor, ...]
    read: Callable[[], Tensor]
    orient: Callable[[Tensor], Tensor] = as_rows
    usual: bool = False
    replaces: tuple[nn.Module, ...] = ()
    problem: str | None = None
    scales: tuple[Tensor, ...] = ()
    read_whole: Callable[[], Tensor] | None = None
    _part: Hashable = field(default=None, repr=False)

    @property
    def trained(self) -> bool:
        """Whether anything that it is computed from requires a gradient."""
        return any(source.requires_grad for source in self.sources)

    @property
    def identity(self) -> Hashable:
        """Equal for weights that are one and the same: tied layers count once."""
        return (self._part, *map(id, self.sources))

    def whole(self) -> Weight:
        """The same with neurons of the lengths in use; a weight norm or spectral norm costs."""
        if self.read_whole is None:
            return self
        sources = (*self.sources, *self.scales)
        return replace(self, sources=sources, read=self.read_whole, scales=(), read_whole=None)

    def neurons(self) -> Tensor:
        """Neurons as rows: ``[N, d]``, or ``[groups, N / groups, d]``; differentiable.

        Under autocast, too, products are computed in the sources' dtype.

        Raises:
            TypeError: if the weight cannot be read; the message says why.
        """
        if self.problem is not None:
            raise TypeError(f"expected a weight that can be read: {self.problem}")
        with without_autocast(self.sources[0].device):
            neurons = self.orient(dense(self.read()))
        return neurons.squeeze(0) if neurons.ndim == 3 and len(neurons) == 1 else neurons

    def parts(self, sizes: int | Sequence[int]) -> list[Weight]:
        """The weights of consecutive blocks of neurons: so many equal ones, or of these sizes."""
        count = sizes if isinstance(sizes, int) else len(sizes)

        def part(k: int) -> Weight:
            def block(weight: Tensor) -> Tensor:
                neurons: Tensor = self.orient(weight)
                if isinstance(sizes, int):
                    neurons = neurons.unflatten(-2, (sizes, -1)).select(-3, k)
                else:
                    neurons = neurons.split(list(sizes), dim=-2)[k]
                return neurons

            return replace(self, orient=block, _part=(self._part, str(sizes), k))

        return [part(k) for k in range(count)]


def dense(tensor: Tensor) -> Tensor:
    """The values of a sharded, sparse, quantized or eight-bit tensor, as a plain one."""
    tensor = gathered(tensor)
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a DTensor; its gradient is averaged over processes, as FSDP averages them.

    All processes have to come here in the same order. Other tensors are returned as they are.
    """
    if not hasattr(tensor, "full_tensor"):
        return tensor
    from torch.distributed.tensor import Partial

    sharded: Any = tensor
    mesh = sharded.device_mesh
    # Their sum, divided: torch 2.6 takes sums for averages where the processes speak by gloo.
    whole: Tensor = sharded.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if whole.requires_grad:
        whole.register_hook(lambda gradient: gradient / mesh.size())
    return whole
