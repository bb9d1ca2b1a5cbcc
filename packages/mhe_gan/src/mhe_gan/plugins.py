"""What other packages offer by entry points: metrics, losses, networks."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TypeVar

from mhe_core.errors import UserError

__all__ = ["find"]

T = TypeVar("T")


def find(name: str, own: Mapping[str, T], group: str, kind: type[T], what: str) -> T:
    """What a name stands for: one of ours, else what an installed package's entry point names.

    Args:
        name: as the user gave it.
        own: what this package has; no entry point takes their place.
        group: of the entry points.
        kind: what they must be.
        what: is looked for, such as ``the loss``, for messages.

    Raises:
        UserError: for an unknown name, one of two packages, or an entry point of another kind.
    """
    if name in own:
        return own[name]
    installed = entry_points(group=group)
    found = {entry.value: entry for entry in installed if entry.name == name}
    if not found:
        known = ", ".join([*own, *sorted({entry.name for entry in installed} - own.keys())])
        raise UserError(f"expected {what} to be one of {known}, got {name!r}")
    if len(found) > 1:
        raise UserError(
            f"expected one installed package to offer {what} {name!r}, got "
            f"{' and '.join(sorted(found))}"
        )
    (entry,) = found.values()
    thing = entry.load()
    if not isinstance(thing, kind):
        raise UserError(
            f"expected {entry.value} to be a {kind.__module__}.{kind.__qualname__}, got "
            f"{type(thing).__name__}"
        )
    return thing
