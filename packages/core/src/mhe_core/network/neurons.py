"""From a module to its neurons: the rows of the weight that it uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["CONVOLUTIONS", "has_neurons", "neuron_matrix", "stored_weight"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def neuron_matrix(module: nn.Module) -> Tensor:
    """The neurons of a layer as rows: a differentiable view of its weight.

    Neurons are output channels (the rows of a Linear layer's or an Embedding's weight), flattened.
    A parametrized weight is read from its original: computing a spectral-normed weight would run a
    power iteration, and the energy does not depend on the scale that it is divided by. Of a
    weight-normed weight, the direction is read.

    Args:
        module: Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d, Embedding, or any other module whose
            ``weight`` has neurons as rows.

    Returns:
        ``[N, d]``, or ``[groups, N / groups, d]`` for a grouped convolution.

    Raises:
        TypeError: if the module has no weight of at least two dimensions.

    Example:
        >>> from torch import nn
        >>> from mhe_core import neuron_matrix
        >>> neuron_matrix(nn.Conv2d(3, 16, kernel_size=5)).shape
        torch.Size([16, 75])
        >>> neuron_matrix(nn.ConvTranspose2d(4, 6, kernel_size=3, groups=2)).shape
        torch.Size([2, 3, 18])
    """
    weight = stored_weight(module)
    groups = module.groups if isinstance(module, CONVOLUTIONS) else 1
    grouped = weight.unflatten(0, (groups, -1))
    if isinstance(module, TRANSPOSED):  # [groups, in / groups, N / groups, *kernel]
        grouped = grouped.transpose(1, 2)
    neurons = grouped.flatten(2)
    return neurons.squeeze(0) if groups == 1 else neurons


def stored_weight(module: nn.Module) -> Tensor:
    """The tensor that is trained for a layer's weight: the same but for the neurons' lengths."""
    weight = parametrized_weight(module)
    if weight is None:
        weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        got = type(module).__name__
        raise TypeError(f"expected a layer with a weight of at least two dimensions, got {got}")
    return weight


def parametrized_weight(module: nn.Module) -> Tensor | None:
    """The original of a weight that is computed from one; None for a plain weight."""
    neuron_dim = 1 if isinstance(module, TRANSPOSED) else 0
    if is_parametrized(module, "weight"):
        weight: Any = module.get_submodule("parametrizations.weight")
        if hasattr(weight, "original"):
            return weight.original
        if isinstance(weight[0], _WeightNorm) and weight[0].dim in (neuron_dim, -1):
            return weight.original1
        with torch.enable_grad():  # no single tensor has the neurons' directions
            return weight()
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == "weight":
            if hook.dim in (neuron_dim, -1):
                return module.get_parameter("weight_v")
            with torch.enable_grad():
                return hook.compute_weight(module)
    return getattr(module, "weight_orig", None)  # of torch.nn.utils.spectral_norm


def has_neurons(module: nn.Module) -> bool:
    """Whether :func:`neuron_matrix` takes the module."""
    try:
        stored_weight(module)
    except TypeError:
        return False
    return True
