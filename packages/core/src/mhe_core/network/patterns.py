"""Weights by name, by pattern, by regular expression or by the kind of their module."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from mhe_core.network._weight import Weight

__all__ = ["Pattern", "Patterns", "fits", "matching"]

Pattern = str | re.Pattern[str] | type[nn.Module]
Patterns = Pattern | Iterable[Pattern]


def fits(pattern: Pattern, name: str, weight: Weight) -> bool:
    """Whether a pattern means this weight.

    Args:
        pattern: the name itself or a pattern of the shell such as ``"*.attn.*"``; a compiled
            regular expression, which has to match the whole name; or a class of modules, which
            has to be that of the module that holds the weight (of an adapter: the module inside).
        name: the weight's.
        weight: the weight.

    Raises:
        TypeError: if the pattern is none of these.
    """
    if isinstance(pattern, str):
        return name == pattern or fnmatchcase(name, pattern)
    if isinstance(pattern, re.Pattern):
        return pattern.fullmatch(name) is not None
    if isinstance(pattern, type) and issubclass(pattern, nn.Module):
        return isinstance(weight.module, pattern)
    raise TypeError(
        "expected a name, a pattern, a compiled regular expression or a class of modules, got "
        f"{pattern!r}"
    )


def matching(weights: Mapping[str, Weight], patterns: Patterns, option: str) -> set[str]:
    """Names of the weights that one of the patterns fits.

    Raises:
        ValueError: if a pattern fits none; the message lists the names.
    """
    found: set[str] = set()
    if isinstance(patterns, (str, re.Pattern, type)):
        patterns = [patterns]
    for pattern in patterns:
        fitting = {name for name, weight in weights.items() if fits(pattern, name, weight)}
        if not fitting:
            raise ValueError(f"expected {option} to fit one of {list(weights)}, got {pattern!r}")
        found |= fitting
    return found
