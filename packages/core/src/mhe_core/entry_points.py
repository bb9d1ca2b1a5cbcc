"""What installed distributions offer by entry points, for every group of the project.

Each is found once, found by name, and imported with errors that name the distribution that it
comes from: a regularizer, a weight reader, a head, a metric, a feature extractor.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mhe_core.errors import UserError

__all__ = [
    "PluginError",
    "described",
    "distribution_of",
    "find",
    "installed",
    "load",
    "normalized",
    "target_of",
]

TARGET = re.compile(r"([\w.]+)\s*:\s*([\w.]+)\s*(?:\[.*\])?")  # module:object [extras]


class PluginError(UserError):
    """A plug-in was asked for that cannot be had; the message says from whom, and why."""


def installed(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group; one that is found twice (editable installs) is folded.

    Example:
        >>> from mhe_core.entry_points import installed
        >>> "half_mhe" in {entry_point.name for entry_point in installed("mhe_core.regularizers")}
        True
    """
    importlib.invalidate_caches()  # something may have been installed since the process started
    found = {
        (point.name, point.value, origin_of(point)): point for point in entry_points(group=group)
    }
    return tuple(found.values())


def find(name: str, group: str, what: str, own: Collection[str] = ()) -> EntryPoint:
    """The one entry point of that name, or of that ``distribution:name``.

    Args:
        name: as the user gave it.
        group: of the entry points.
        what: is looked for, such as ``"head"``, for messages.
        own: other names that would have been understood, for messages.

    Raises:
        PluginError: (a ValueError) if the name is unknown, or claimed by two distributions.
    """
    offered = installed(group)
    matches = [point for point in offered if point.name == name]
    if not matches:
        matches = [
            point
            for point in offered
            if f"{normalized(distribution_of(point))}:{point.name}" == picked(name)
        ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        claims = sorted(f"{origin_of(point)} ({point.value})" for point in matches)
        picks = sorted({f"{distribution_of(point)}:{point.name}" for point in matches})
        raise PluginError(
            f"the {what} name {name!r} is claimed by {' and by '.join(claims)}; pick one by "
            f"writing {' or '.join(map(repr, picks))}"
        )
    known = list(dict.fromkeys([*own, *sorted({point.name for point in offered})]))
    near = difflib.get_close_matches(name, known)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise PluginError(
        f"expected the {what} to be one of {', '.join(known) or 'an installed distribution'}, "
        f"got {name!r}{hint}"
    )


def load(entry_point: EntryPoint, what: str, kind: type | None = None) -> Any:
    """Import what an entry point names.

    Args:
        entry_point: one of :func:`installed`.
        what: it is, such as ``"head"``, for messages.
        kind: the class that it must be an instance of; None: it must be callable.

    Raises:
        PluginError: (a ValueError) if it cannot be imported, whatever its module raises, or is
            something else.
    """
    try:
        target_of(entry_point)
        found = entry_point.load()
    except (Exception, SystemExit) as error:
        cause = f"it cannot be imported: {type(error).__name__}: {error}"
        raise PluginError(f"{described(entry_point, what)}: {cause}") from error
    if kind is None and not callable(found):
        cause = f"expected a callable, got {found!r}"
        raise PluginError(f"{described(entry_point, what)}: {cause}")
    if kind is not None and not isinstance(found, kind):
        expected = f"{kind.__module__}.{kind.__qualname__}"
        cause = f"expected it to be a {expected}, got {type(found).__name__}"
        raise PluginError(f"{described(entry_point, what)}: {cause}")
    return found


def described(entry_point: EntryPoint, what: str) -> str:
    """An entry point in words, for messages: what it is, of whom, and where."""
    return f"{what} {entry_point.name!r} of {origin_of(entry_point)} ({entry_point.value})"


def target_of(entry_point: EntryPoint) -> tuple[str, str]:
    """Module and object of an entry point.

    Checked here, because each version of Python has another error for a malformed target.

    Raises:
        ValueError: if it does not name a module and an object.
    """
    match = TARGET.fullmatch(entry_point.value)
    if match is None:
        raise ValueError(f"expected a target of the form module:object, got {entry_point.value!r}")
    return match[1], match[2]


def distribution_of(entry_point: EntryPoint) -> str:
    """The name of the distribution that an entry point comes from."""
    name = entry_point.dist and entry_point.dist.metadata["Name"]
    return name or "unnamed distribution"


def origin_of(entry_point: EntryPoint) -> str:
    """Distribution and version, for messages."""
    version = (entry_point.dist and entry_point.dist.metadata["Version"]) or ""
    return f"{distribution_of(entry_point)} {version}".strip()


def normalized(distribution: str) -> str:
    """The name as package indexes compare it: mhe_core is mhe-core."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def picked(name: str) -> str:
    """``distribution:name`` with the distribution as package indexes compare it."""
    distribution, _, short = name.rpartition(":")
    return f"{normalized(distribution)}:{short}"
