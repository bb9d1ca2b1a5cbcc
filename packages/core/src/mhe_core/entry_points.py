"""What installed distributions offer by entry points, for every group of the project.

Each is found once, found by name, and imported with errors that name the distribution that it
comes from: a regularizer, a weight reader, a head, a metric, a feature extractor.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import re
from collections.abc import Collection, Iterable
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any, TypeVar

from mhe_core.errors import UserError

__all__ = [
    "PluginError",
    "claimed",
    "described",
    "distribution_of",
    "find",
    "installed",
    "load",
    "matching",
    "metadata_of",
    "normalized",
    "target_of",
]

TARGET = re.compile(r"([\w.]+)\s*:\s*([\w.]+)\s*(?:\[.*\])?")  # module:object [extras]


T = TypeVar("T")


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
    matches = matching(name, ((distribution_of(point), point.name, point) for point in offered))
    if len(matches) == 1:
        return matches[0]
    if matches:
        claims = [f"{origin_of(point)} ({point.value})" for point in matches]
        picks = [f"{distribution_of(point)}:{point.name}" for point in matches]
        raise PluginError(claimed(name, what, claims, picks))
    known = list(dict.fromkeys([*own, *sorted({point.name for point in offered})]))
    near = difflib.get_close_matches(name, known)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise PluginError(
        f"expected the {what} to be one of {', '.join(known) or 'an installed distribution'}, "
        f"got {name!r}{hint}"
    )


def matching(name: str, offered: Iterable[tuple[str, str, T]]) -> list[T]:
    """What is offered under a name, or else under ``distribution:name``.

    Args:
        name: as the user gave it.
        offered: distribution, name, and what that distribution offers under it.
    """
    offered = list(offered)
    bare = [thing for _, own, thing in offered if own == name]
    if bare or ":" not in name:
        return bare
    distribution, _, short = name.partition(":")
    wanted = (normalized(distribution), short)
    return [thing for origin, own, thing in offered if (normalized(origin), own) == wanted]


def claimed(name: str, what: str, claims: Iterable[str], picks: Iterable[str]) -> str:
    """What to say of a name that several distributions offer.

    Args:
        name: as the user gave it.
        what: it names, such as ``"head"``.
        claims: who offers it, and where.
        picks: what to write in its place.
    """
    return (
        f"the {what} name {name!r} is claimed by {' and by '.join(sorted(claims))}; "
        f"pick one by writing {' or '.join(map(repr, sorted(set(picks))))}"
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
    return metadata_of(entry_point, "Name") or "unnamed distribution"


def origin_of(entry_point: EntryPoint) -> str:
    """Distribution and version, for messages."""
    return f"{distribution_of(entry_point)} {metadata_of(entry_point, 'Version')}".strip()


def metadata_of(entry_point: EntryPoint, key: str) -> str:
    """A field of that distribution's metadata, empty where it has none."""
    return (entry_point.dist and parsed(entry_point.dist).get(key)) or ""


@functools.lru_cache(maxsize=64)
def parsed(distribution: Distribution) -> Any:
    """Its metadata, of which importlib would read the file again for each field."""
    return distribution.metadata


def normalized(distribution: str) -> str:
    """The name as package indexes compare it: mhe_core is mhe-core."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
