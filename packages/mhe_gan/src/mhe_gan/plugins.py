"""What other packages offer by entry points: metrics, losses, networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from mhe_core import entry_points

__all__ = ["find"]

T = TypeVar("T")


def find(name: str, own: Mapping[str, T], group: str, kind: type[T], what: str) -> T:
    """What a name stands for: one of ours, else what an installed package's entry point names.

    Args:
        name: as the user gave it.
        own: what this package has; no entry point takes their place.
        group: of the entry points.
        kind: what they must be.
        what: is looked for, such as ``loss``, for messages.

    Raises:
        PluginError: (a ValueError) for an unknown name, one of two packages, or an entry point
            that cannot be imported or is of another kind.
    """
    if name in own:
        return own[name]
    found: T = entry_points.load(entry_points.find(name, group, what, own), what, kind)
    return found
