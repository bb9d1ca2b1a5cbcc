"""Which of a network's layers are its output layers, and whether a guess at them is safe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from mhe_core.network._in_use import CONVOLUTIONS
from mhe_core.network._wrappers import unwrapped
from mhe_core.network.neurons import Split
from mhe_core.network.patterns import Patterns, matching
from mhe_core.network.selection import neuron_layers, readable

__all__ = ["doubt_about_output", "find_output_layers"]

# Names that a warning lists: detectors have dozens of layers behind the last Linear one.
MOST_NAMES = 8


def find_output_layers(
    model: nn.Module,
    names: Patterns | None = None,
    *,
    required: bool = True,
    split: Split | None = None,
) -> list[str]:
    """Names of the output layers: those that are given, or those found, one a head of the model.

    Raises:
        ValueError: if a given name or pattern fits no layer, or none is found and one is
            ``required``.
    """
    candidates = readable(model, split)
    if names is not None:
        given = matching(candidates, names, "output_layer")
        return [name for name in candidates if name in given]
    layers = neuron_layers(model, split=split)
    mapping = {name: w.module for name, w in layers.items() if maps_channels(w.module)}
    found: list[str] = []
    for head in heads(model):
        inside = set(head.modules())
        within = [module for module in mapping.values() if module in inside]
        chosen = within[-1:]
        if head is not model:  # a classifier may hold several, as timm's RepViT does
            same = {outputs(module) for module in chosen}
            chosen += [module for module in open_ends(within) if outputs(module) in same]
        found += [name for name, m in mapping.items() if m in chosen and name not in found]
    if required and not found:
        raise ValueError(
            "expected an output layer (what get_classifier() returns, or a Linear layer or 1×1 "
            f"convolution), found none: give output_layer, one of {list(candidates)}, or "
            "output=None"
        )
    return found


def heads(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that classify: timm's distilled models have two, side by side."""
    get_classifier = getattr(model, "get_classifier", None)
    classifier = get_classifier() if get_classifier else model
    several = [classifier]
    if isinstance(classifier, (tuple, list, nn.ModuleList)):
        several = list(classifier)
    return [head for head in several if isinstance(head, nn.Module)]


def doubt_about_output(
    model: nn.Module, guessed: Sequence[str], split: Split | None = None
) -> str | None:
    """Why the output layers that were found may not be those that are meant, and what else may.

    None where the model itself names its classifier, where a chain of modules ends with the layer,
    or where it is the last weight, a Linear layer, and the only one that looks like a head.
    """
    weights = readable(model, split)
    layers = {weights[name].module for name in guessed}
    if hasattr(model, "get_classifier") or len(layers) != 1:
        return None
    name, (layer,) = guessed[-1], layers
    after = list(weights)[list(weights).index(name) + 1 :]
    if not after and ends_a_chain(model, layer):
        return None
    repeated = modules_in_blocks(model)
    ends = open_ends([w.module for w in weights.values() if isinstance(w.module, nn.Linear)])
    alone = [end for end in ends if end not in repeated]
    beside = [n for n, w in weights.items() if w.module in alone and w.module is not layer]
    if not isinstance(layer, nn.Linear):
        reason = f"{name!r} is the last 1×1 convolution"
    elif layer in repeated:
        reason = f"{name!r} is the last Linear layer, and part of a block that occurs several times"
    elif layer not in alone:
        reason = f"{name!r} is the last Linear layer, with as many outputs as others have inputs"
    elif after or beside:
        reason = f"{name!r} is the last Linear layer"
    else:
        return None
    others = f", beside {listed(beside + after)}" if beside or after else ""
    return (
        f"the output layer is a guess: {reason}{others}. output_layer= takes names and patterns, "
        "output=None is for networks without one"
    )


def open_ends(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Those whose outputs no other one can take: heads, not projections within the network."""
    takers = Counter(inputs(layer) for layer in set(layers))
    return [
        layer for layer in layers if takers[outputs(layer)] == (inputs(layer) == outputs(layer))
    ]


def modules_in_blocks(model: nn.Module) -> set[nn.Module]:
    """The modules inside of blocks that occur several times in a row, as a transformer's do."""
    found: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            blocks = [child for child in module.children() if next(child.children(), None)]
            kinds = Counter(type(unwrapped(block)) for block in blocks)
            for block in blocks:
                if kinds[type(unwrapped(block))] > 1:
                    found.update(block.modules())
    return found


def ends_a_chain(model: nn.Module, layer: nn.Module) -> bool:
    """Whether all that the layer is inside of are Sequential, so that it comes last if it is."""
    others = [module for module in unwrapped(model).modules() if module is not layer]
    around = [module for module in others if any(m is layer for m in module.modules())]
    return all(type(module) is nn.Sequential for module in around)


def maps_channels(module: nn.Module) -> bool:
    """Whether the module is a Linear layer or a 1×1 convolution."""
    if isinstance(module, CONVOLUTIONS):
        return all(size == 1 for size in module.kernel_size)
    return isinstance(module, nn.Linear)


def inputs(layer: Any) -> int:
    """Number of inputs, or of input channels."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def outputs(layer: Any) -> int:
    """Number of outputs, or of output channels."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def listed(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - MOST_NAMES
    shown = ", ".join(map(repr, names[:MOST_NAMES]))
    return f"{shown} and {more} more" if more > 0 else shown
