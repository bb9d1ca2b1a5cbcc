"""Flags that take several values: ``--pack a.bin b.bin``."""

from __future__ import annotations

import json
from collections.abc import Sequence

__all__ = ["lists_spelled_out"]


def lists_spelled_out(arguments: Sequence[str], *flags: str) -> list[str]:
    """The arguments with the values after each of these flags as one list, as parsers want it.

    Example:
        >>> lists_spelled_out(["run", "--pack", "a.bin", "b.bin", "--amp", "no"], "--pack")
        ['run', '--pack', '["a.bin", "b.bin"]', '--amp', 'no']
    """
    spelled: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name not in flags:
            spelled.append(argument)
            continue
        values = [value] if equals else []
        while rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        if len(values) == 1 and values[0].startswith("["):
            spelled += [name, values[0]]
        else:
            spelled += [name, json.dumps([number(value) for value in values])]
    return spelled


def number(value: str) -> float | str:
    """A number, where the text is one."""
    try:
        return float(value)
    except ValueError:
        return value
