"""Checks of regularizers' arguments: errors that say what was expected, and what came."""

from __future__ import annotations

import math
from numbers import Real

from torch import Tensor

__all__ = ["check_integer", "check_number", "check_rate", "check_seed"]

SEEDS = 2**63  # so many; a seed is kept as a 64-bit integer


def check_integer(name: str, value: object, least: int) -> None:
    """Raise a ValueError if the value is not an integer of at least ``least``.

    Example:
        >>> check_integer("inner_steps", 2.5, least=0)
        Traceback (most recent call last):
            ...
        ValueError: expected inner_steps as an integer ≥ 0, got 2.5
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"expected {name} as an integer ≥ {least}, got {value!r}")


def check_seed(value: object) -> None:
    """Raise a ValueError if the value is neither None nor an integer from 0 to 2⁶³ − 1."""
    if value is None:
        return
    check_integer("seed", value, 0)
    if value >= SEEDS:  # type: ignore[operator]  # an integer
        raise ValueError(f"expected seed as an integer below 2**63, got {value!r}")


def check_number(name: str, value: object, *, positive: bool = False) -> None:
    """Raise a ValueError if the value is not a finite number ≥ 0, or > 0 if ``positive``."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf or (positive and value == 0):  # type: ignore[operator]
        wanted = "> 0" if positive else "≥ 0"
        raise ValueError(f"expected {name} as a finite number {wanted}, got {value!r}")


def check_rate(lr: object) -> None:
    """Raise a ValueError if an update's learning rate is not a finite number, or scalar, ≥ 0.

    The value of a tensor is not looked at: it would stall an accelerator.
    """
    if not isinstance(lr, Tensor):
        check_number("lr", lr)
    elif lr.numel() != 1:
        raise ValueError(f"expected lr as a number, got a tensor of shape {list(lr.shape)}")
