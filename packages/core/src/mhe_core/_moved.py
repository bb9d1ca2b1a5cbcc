"""For one release, modules can be imported from where they were, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings

__all__ = ["moved"]


def moved(old: str, new: str) -> None:
    """Let the module ``old``, which calls this while it is imported, be the module ``new``."""
    message = f"{old} has moved: import {new} instead; the old path goes with the next release"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    sys.modules[old] = importlib.import_module(new)
