"""Heads by name: those of installed distributions, this one's included.

A distribution offers a head through an entry point in the group ``sphereface_plus.heads``::

    [project.entry-points."sphereface_plus.heads"]
    my_head = "my_package.my_module:MyHead"

The entry point's object is called as ``factory(dim, num_classes, **options)`` and returns an
``nn.Module`` with its class vectors ``weight``, ``[num_classes, dim]``; calling that with features
``[B, dim]`` and labels ``[B]`` gives the loss.
"""

from __future__ import annotations

from typing import Any

from mhe_core.entry_points import find, installed, load
from mhe_core.errors import UserError, users_request
from torch import nn

__all__ = ["create_head", "list_heads"]

GROUP = "sphereface_plus.heads"


def list_heads() -> list[str]:
    """The names of all installed heads.

    Example:
        >>> "adaface" in list_heads()
        True
    """
    return sorted({entry.name for entry in installed(GROUP)})


def create_head(name: str, dim: int, num_classes: int, **options: Any) -> nn.Module:
    """Make the head of that name.

    Args:
        name: one of :func:`list_heads`, or ``distribution:name`` where two distributions claim
            one name.
        dim: d, the dimension of the features.
        num_classes: C, the number of classes.
        **options: handed to the head.

    Returns:
        A module that maps features ``[B, d]`` and labels ``[B]`` to a loss.

    Raises:
        UserError: (a ValueError) if there is no such head, two distributions have one of that
            name, it cannot be imported, does not take these options, or is no head.

    Example:
        >>> create_head("cosface", dim=8, num_classes=5, m=0.3).m
        0.3
    """
    entry = find(name, GROUP, "head")
    factory = load(entry, "head")
    with users_request(f"head {name}"):
        head = factory(dim, num_classes, **options)
    shape = getattr(getattr(head, "weight", None), "shape", None)
    if not isinstance(head, nn.Module) or shape != (num_classes, dim):
        got = type(head).__name__ if shape is None else f"weight {list(shape)}"
        raise UserError(
            f"head {name} ({entry.value}): expected a module with weight [{num_classes}, {dim}], "
            f"got {got}"
        )
    return head
