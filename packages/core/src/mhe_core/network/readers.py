"""Weight readers: what recognises a module and says which weights it uses.

A distribution teaches core a module of its own through an entry point in the group
``mhe_core.weight_readers``::

    [project.entry-points."mhe_core.weight_readers"]
    my_layers = "my_package.my_module:read"

The entry point's object is called as ``read(module)``. It returns None for modules that are not its
own, and for others a mapping of names to :class:`~mhe_core.network.Weight`: "weight" for the only
one, or the main one, of a layer. Installed readers are asked first, core's own after them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import nn

from mhe_core.entry_points import PluginError, described, installed, load
from mhe_core.network._adapters import adapter_weights
from mhe_core.network._own import own_weights
from mhe_core.network._weight import Weight

__all__ = ["GROUP", "read_module"]

GROUP = "mhe_core.weight_readers"

Reader = Callable[[nn.Module], "Mapping[str, Weight] | None"]

_readers_in_use: list[tuple[str, Reader]] = []


def read_module(module: nn.Module) -> Mapping[str, Weight]:
    """The weights of a module by name, as the first reader that knows it says.

    Raises:
        PluginError: if an installed reader fails to import, or returns something else.
    """
    if not torch.compiler.is_compiling():  # which cannot look for entry points
        _readers_in_use[:] = installed_readers()
    for origin, reader in _readers_in_use:
        weights = reader(module)
        if weights is None:
            continue
        if not isinstance(weights, Mapping) or not all(
            isinstance(weight, Weight) for weight in weights.values()
        ):
            got = f"{weights!r} for a {type(module).__name__}"
            raise PluginError(f"{origin}: expected a mapping of names to Weight, got {got}")
        return weights
    weights = adapter_weights(module, read_module)
    return own_weights(module) if weights is None else weights


@functools.cache
def installed_readers() -> tuple[tuple[str, Reader], ...]:
    """Where each reader of other distributions comes from, for messages, and the reader."""
    return tuple(
        (described(point, "weight reader"), load(point, "weight reader"))
        for point in installed(GROUP)
    )
