"""The weights of torch's and other common modules, recognised by what they have."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mhe_core.network._in_use import CONVOLUTIONS, tensor_names, weight_in_use
from mhe_core.network._weight import Orientation, Weight, as_rows

__all__ = ["LAYERS", "own_weights"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)
# Blocks of neurons in a recurrent layer's weights.
GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}


class Use(NamedTuple):
    """How a module uses a tensor: where its neurons are, and whether it multiplies the input."""

    orient: Orientation
    neuron_dim: int = 0
    usual: bool = True


def own_weights(module: nn.Module) -> dict[str, Weight]:
    """The weights that a module has itself, not its children, by the tensors' names."""
    weights = {}
    for name in tensor_names(module):
        use = use_of(module, name)
        found = weight_in_use(module, name, use.neuron_dim)
        if found is None:
            continue
        dimensions = {source.ndim >= 2 for source in found.sources}
        if dimensions == {False}:
            continue
        parametrizations = module._modules.get("parametrizations")
        weight = Weight(
            module,
            found.sources,
            found.read,
            orient=use.orient,
            usual=use.usual,
            replaces=() if parametrizations is None else (parametrizations,),
            problem=problem_of(found.sources[0]),
            scales=found.scales,
            read_whole=found.read_whole,
        )
        if dimensions == {True} or _dimensions(weight) >= 2:
            weights[name] = weight
    return weights


def _dimensions(weight: Weight) -> int:
    with torch.no_grad():
        return weight.read().ndim


def problem_of(tensor: Tensor) -> str | None:
    """Why numbers of this type are no weights."""
    if tensor.is_floating_point() or tensor.is_quantized:
        return None
    return f"it is of {tensor.dtype}, and codes have no angles: dequantize it first"


def use_of(module: nn.Module, name: str) -> Use:
    """How the module uses its tensor of that name."""
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        recurrent = name.startswith(("weight_ih", "weight_hh"))
        gates = next((n for kind, n in GATES.items() if isinstance(module, kind)), 1)
        blocks = gates if recurrent else 1
        return Use(partial(in_blocks, blocks=blocks), usual=name.startswith("weight"))
    if isinstance(module, nn.MultiheadAttention):
        blocks = 3 if name == "in_proj_weight" else 1
        return Use(partial(in_blocks, blocks=blocks), usual=name.endswith("proj_weight"))
    tensor = module._parameters.get(name)
    if tensor is not None and tensor.ndim == 3 and len(tensor) == getattr(module, "num_experts", 0):
        return Use(as_columns if has_transposed_experts(module) else as_stored)
    if name != "weight":
        return Use(as_stored if tensor is not None and tensor.ndim == 3 else as_rows, usual=False)
    if isinstance(module, CONVOLUTIONS):
        transposed = isinstance(module, TRANSPOSED)
        orient = partial(filters, groups=module.groups, transposed=transposed)
        return Use(orient, neuron_dim=int(transposed))
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # transformers': [in, out]
        return Use(as_columns, neuron_dim=1)
    return Use(as_rows, usual=isinstance(module, nn.Linear))


def has_transposed_experts(module: nn.Module) -> bool:
    """Whether a mixture's three-dimensional weights are ``[experts, in, out]``."""
    said = getattr(module, "is_transposed", None)
    if isinstance(said, bool):
        return said
    up, down = (module._parameters.get(name) for name in ("gate_up_proj", "down_proj"))
    return up is not None and down is not None and up.shape[1] == down.shape[2]


def in_blocks(weight: Tensor, *, blocks: int) -> Tensor:
    """Equal blocks of rows, such as a recurrent layer's gates: ``[blocks, N / blocks, d]``."""
    split: Tensor = weight.flatten(1).unflatten(0, (blocks, -1))
    return split


def filters(weight: Tensor, *, groups: int, transposed: bool) -> Tensor:
    """A convolution's filters by group: ``[groups, N / groups, d]``."""
    grouped = weight.unflatten(0, (groups, -1))
    if transposed:  # [groups, in / groups, N / groups, *kernel]
        grouped = grouped.transpose(1, 2)
    rows: Tensor = grouped.flatten(2)
    return rows


def as_columns(weight: Tensor) -> Tensor:
    """Neurons along the last dimension: ``[..., d, N]``."""
    return weight.mT


def as_stored(weight: Tensor) -> Tensor:
    """``[batch, N, d]``, such as the experts of a mixture."""
    return weight
