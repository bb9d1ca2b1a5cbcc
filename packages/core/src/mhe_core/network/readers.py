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
from importlib.metadata import EntryPoint, entry_points

import torch
from torch import nn

from mhe_core.network._adapters import adapter_weights
from mhe_core.network._own import own_weights
from mhe_core.network._weight import Weight
from mhe_core.registry import PluginError

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
    found = {(point.name, point.value): point for point in entry_points(group=GROUP)}
    return tuple((described(point), loaded(point)) for point in found.values())


def described(point: EntryPoint) -> str:
    """The entry point, in words."""
    origin = f" of {point.dist.name} {point.dist.version}" if point.dist else ""
    return f"weight reader {point.name!r}{origin} ({point.value})"


def loaded(point: EntryPoint) -> Reader:
    """The reader of an entry point."""
    try:
        reader: Reader = point.load()
    except (Exception, SystemExit) as error:
        cause = f"{type(error).__name__}: {error}"
        raise PluginError(f"{described(point)}: it cannot be imported: {cause}") from error
    if not callable(reader):
        raise PluginError(f"{described(point)}: expected a callable, got {reader!r}")
    return reader
