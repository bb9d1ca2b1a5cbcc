"""Where the host would wait for an accelerator, and how not to.

A number that is read back from an accelerator stalls its queue. So what may be unusual, and then
has to be done with more care, is only noted, as a number on the device and the range in which it is
usual (a *doubt*). All numbers of what was computed within :func:`asked_once` are read back at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = ["Doubt", "any_justified", "asked_once", "waits_are_dear"]

T = TypeVar("T")


class Doubt(NamedTuple):
    """Whether all entries of a tensor are at least and at most so much, which NaN is not.

    Given by the least and the greatest of them, two scalars on their device.
    """

    extremes: tuple[Tensor, Tensor]
    least: float
    most: float

    @classmethod
    def of(cls, entries: Tensor, least: float, most: float) -> Doubt:
        """Note the doubt about these entries, of which there is one at least."""
        smallest, greatest = entries.aminmax()
        return cls((smallest, greatest), least, most)


# What is noted, and whether all is done with care from the start; None: ask at once.
_noted: ContextVar[list[Doubt] | None] = ContextVar("_noted", default=None)
_careful: ContextVar[bool] = ContextVar("_careful", default=False)


def waits_are_dear(device: torch.device) -> bool:
    """Whether to go on as if all were usual, and ask later."""
    return device.type != "cpu" and not _careful.get()


def any_justified(doubts: Sequence[Doubt]) -> bool:
    """Whether any doubt is; within :func:`asked_once` they are noted, and the answer is no."""
    noted = _noted.get()
    if noted is None:
        return any(_justified(doubts))
    noted.extend(doubts)
    return False


def _justified(doubts: Sequence[Doubt]) -> list[bool]:
    """Which doubts are, for which the host waits once."""
    if not doubts:
        return []
    device = doubts[0].extremes[0].device
    numbers = torch.stack([x.to(device) for one in doubts for x in one.extremes]).tolist()
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return [
        not (one.least <= smallest and greatest <= one.most)
        for one, (smallest, greatest) in zip(doubts, pairs, strict=True)
    ]


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
    noted: list[tuple[int, Doubt]] = []
    results = []
    for k, function in enumerate(compute):
        with _set(_noted, []) as doubts:
            results.append(function())
        noted += [(k, one) for one in doubts or ()]
    justified = _justified([one for _, one in noted])
    again = {k for (k, _), so in zip(noted, justified, strict=True) if so}
    with _set(_careful, True):
        for k in again:
            results[k] = compute[k]()
    return results
