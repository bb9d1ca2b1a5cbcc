"""Where the host would wait for an accelerator, and how not to.

A number that is read back from an accelerator stalls its queue. So what is unusual, and has to be
done with more care, is only noted as a tensor (a *doubt*); whether there is any is asked once, for
all that was computed within :func:`asked_once`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["asked_once", "doubt", "waits_are_dear"]

T = TypeVar("T")

# What is noted, and whether all is done with care from the start; None: ask at once.
_noted: ContextVar[list[Tensor] | None] = ContextVar("_noted", default=None)
_careful: ContextVar[bool] = ContextVar("_careful", default=False)


def waits_are_dear(device: torch.device) -> bool:
    """Whether to go on as if all were usual, and ask later."""
    return device.type != "cpu" and not _careful.get()


def doubt(doubts: Sequence[Tensor]) -> bool:
    """Whether any of these is true; within :func:`asked_once` that is noted, and the answer no."""
    if not doubts:
        return False
    any_of_them = torch.stack(list(doubts)).any()
    noted = _noted.get()
    if noted is None:
        return bool(any_of_them)
    noted.append(any_of_them)
    return False


@contextmanager
def _set(variable: ContextVar[T], value: T) -> Iterator[T]:
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


def asked_once(compute: Sequence[Callable[[], T]]) -> list[T]:
    """The results of all functions; the host waits at most once, to learn which are in doubt.

    Those are called again, with care, so that they have to be pure.
    """
    if torch.compiler.is_compiling():  # each operator asks for itself, when it runs
        return [function() for function in compute]
    noted: list[tuple[int, Tensor]] = []
    results = []
    for k, function in enumerate(compute):
        with _set(_noted, []) as doubts:
            results.append(function())
        noted += [(k, one) for one in doubts or ()]
    if not noted:
        return results
    flags = torch.stack([one.to(noted[0][1].device) for _, one in noted]).tolist()
    again = {k for (k, _), flag in zip(noted, flags, strict=True) if flag}
    with _set(_careful, True):
        for k in again:
            results[k] = compute[k]()
    return results
