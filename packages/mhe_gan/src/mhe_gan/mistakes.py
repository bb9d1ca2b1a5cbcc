"""For how long the discriminator has made no mistake, and so taught the generator nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["StepsWithoutMistake"]


class StepsWithoutMistake:
    """How many steps in a row the discriminator's loss has been below a limit, up to the last.

    Args:
        limit: a smaller loss is one without a mistake.
        reduce: means over the processes of a distributed run, so that all count the same.

    Example:
        >>> steps = StepsWithoutMistake(0.1)
        >>> for loss in (0.0, 0.5, 0.05, 0.0):
        ...     steps.watch(torch.tensor(loss))
        >>> steps.count
        2
    """

    def __init__(
        self, limit: float, reduce: Callable[[Tensor], Tensor] = lambda mean: mean
    ) -> None:
        self.limit = limit
        self.reduce = reduce
        self._count = torch.zeros((), dtype=torch.int64)

    def watch(self, loss: Tensor) -> None:
        """Count a step by its loss, a scalar; the host does not wait for a GPU."""
        perfect = self.reduce(loss.detach()) < self.limit
        self._count = (self._count.to(perfect.device) + 1) * perfect

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self._count)

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self._count = state_dict["count"]
