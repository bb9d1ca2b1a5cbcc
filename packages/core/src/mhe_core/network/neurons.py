"""From a network to its weights by name, and from a module to its neurons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mhe_core.network._weight import Weight
from mhe_core.network._wrappers import unwrapped
from mhe_core.network.patterns import fits, matching
from mhe_core.network.readers import read_module

__all__ = ["has_neurons", "module_weights", "named_weights", "neuron_matrix", "weight_at"]

Split = Mapping[Any, int | Sequence[int]]  # by Pattern, in which Mapping is invariant


def neuron_matrix(module: nn.Module) -> Tensor:
    """The neurons of a layer as rows: the directions of the weight that it uses.

    Neurons are output channels (the rows of a Linear layer's or an Embedding's weight), flattened.
    A plain weight is returned as a view. A computed one (a parametrization, a pruning mask, weight
    standardization, an adapter of PEFT) is computed as the forward pass would, but without
    changing the module. What only rescales neurons is passed over: computing a spectral-normed
    weight would run a power iteration, and energies do not depend on the scale.

    Args:
        module: Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d, Embedding, an adapter of PEFT around
            one of these, or any other module that has one weight, whose rows are neurons.

    Returns:
        ``[N, d]``, or ``[groups, N / groups, d]`` where neurons of different groups have nothing
        to do with each other: grouped convolutions, gates of a recurrent layer, experts.

    Raises:
        TypeError: if the module has no weight of at least two dimensions, or several.

    Example:
        >>> from torch import nn
        >>> from mhe_core import neuron_matrix
        >>> neuron_matrix(nn.Conv2d(3, 16, kernel_size=5)).shape
        torch.Size([16, 75])
        >>> neuron_matrix(nn.ConvTranspose2d(4, 6, kernel_size=3, groups=2)).shape
        torch.Size([2, 3, 18])
    """
    weights = module_weights(module)
    if "" in weights:
        return weights[""].neurons()
    if len(weights) == 1:
        return next(iter(weights.values())).neurons()
    got = type(module).__name__ + (f" with {', '.join(weights)}" if weights else "")
    raise TypeError(f"expected a layer with a weight of at least two dimensions, got {got}")


def has_neurons(module: nn.Module) -> bool:
    """Whether :func:`neuron_matrix` takes the module."""
    weights = module_weights(module)
    return ("" in weights or len(weights) == 1) and all(w.problem is None for w in weights.values())


def module_weights(module: nn.Module) -> dict[str, Weight]:
    """The weights of a module without its children: "" is its ``weight``, others have names.

    Some, such as weights of integers, cannot be read: they have a ``problem``.
    """
    weights = read_module(unwrapped(module))
    return {"" if key == "weight" else key: weight for key, weight in weights.items()}


def named_weights(model: nn.Module, *, split: Split | None = None) -> dict[str, Weight]:
    """All weights of a network, by name, in the network's order.

    A layer's ``weight`` has the layer's name, any other weight also that of the tensor
    (``encoder.attention.in_proj_weight``). Names are those inside all wrappers, whether around the
    whole network or a part of it (DistributedDataParallel, ``torch.compile``, FSDP, activation
    checkpointing, PEFT, Lightning's Fabric). A layer with an adapter is one weight: the effective
    one. Tied weights occur under each of their names, with equal ``identity``.

    Args:
        model: the network, possibly wrapped.
        split: by pattern of names, how fused weights are to be split: into so many equal blocks
            of rows, or into blocks of these sizes. ``{"*.qkv": 3}`` gives ``….qkv[0]`` to
            ``….qkv[2]``.

    Raises:
        ValueError: if a pattern of ``split`` fits no weight, or the sizes do not add up.

    Example:
        >>> from torch import nn
        >>> from mhe_core.network import named_weights
        >>> for name, weight in named_weights(nn.MultiheadAttention(8, num_heads=2)).items():
        ...     print(name, list(weight.neurons().shape))
        in_proj_weight [3, 8, 8]
        out_proj [8, 8]
    """
    weights = dict(_walk(unwrapped(model), "", set()))
    if not split:
        return weights
    for pattern, sizes in split.items():
        for name in matching(weights, pattern, "split"):
            _check_sizes(name, weights[name], sizes)
    return {
        part_name: part
        for name, weight in weights.items()
        for part_name, part in _split(name, weight, split).items()
    }


def weight_at(model: nn.Module, name: str, *, split: Split | None = None) -> Weight:
    """The weight of that name in :func:`named_weights`, as it is now, without a walk through all.

    Raises:
        KeyError: if there is none.
    """
    module, rest = unwrapped(model), name
    while rest:
        head, _, tail = rest.partition(".")
        child = module._modules.get(head)
        if child is None:
            break
        module, rest = unwrapped(child), tail
    weights = module_weights(module)
    if rest in weights:
        return weights[rest]
    whole, bracket, _ = name.rpartition("[")
    if split and bracket:
        parts = _split(whole, weight_at(model, whole), split)
        if name in parts:
            return parts[name]
    raise KeyError(name)


def _walk(module: nn.Module, name: str, seen: set[nn.Module]) -> Iterator[tuple[str, Weight]]:
    if module in seen:  # used twice
        return
    seen.add(module)
    weights = module_weights(module)
    for key, weight in weights.items():
        yield _joined(name, key), weight
    replaced = {part for weight in weights.values() for part in weight.replaces}
    for child_name, child in module.named_children():
        if child not in replaced:
            yield from _walk(unwrapped(child), _joined(name, child_name), seen)


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)


def _split(name: str, weight: Weight, split: Split) -> dict[str, Weight]:
    """The parts by name; the weight itself if no pattern fits."""
    sizes = next((sizes for pattern, sizes in split.items() if fits(pattern, name, weight)), None)
    if sizes is None:
        return {name: weight}
    return {f"{name}[{k}]": part for k, part in enumerate(weight.parts(sizes))}


def _check_sizes(name: str, weight: Weight, sizes: int | Sequence[int]) -> None:
    rows = weight.neurons().shape[-2]
    if isinstance(sizes, int):
        fits = sizes >= 1 and rows % sizes == 0
    else:
        fits = sum(sizes) == rows and min(sizes) >= 1
    if not fits:
        raise ValueError(
            f"expected split to cut the {rows} rows of {name!r} into equal blocks, or into blocks "
            f"that add up to {rows}, got {sizes}"
        )
