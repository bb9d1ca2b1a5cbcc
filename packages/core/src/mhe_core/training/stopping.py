"""How a run is asked to stop: signals, and the processes' agreement on the step."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import distributed as dist

__all__ = ["StopRequest", "TrainingInterrupted"]

# Ctrl-C; kill, SLURM and torchrun; the terminal is closed; SLURM's --signal=USR1 before the end.
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]
IMPATIENT = 1.0  # seconds after which another Ctrl-C is a person's, not the launcher's copy of it


class TrainingInterrupted(SystemExit):
    """The process was asked to stop, and its state is saved; says how to go on.

    Attributes:
        number: of the signal.
        status: the exit status that says so to the shell, 128 + the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number
        self.status = 128 + number


class StopRequest:
    """While entered, a signal asks the loop to stop, in place of ending the process.

    Signals that the process was started to ignore, as nohup does, stay ignored. A second Ctrl-C
    interrupts at once, whatever is saved.

    Args:
        processes: of the run. All have to call :meth:`agreed` at the same steps.
    """

    def __init__(self, processes: int = 1) -> None:
        self.number: int | None = None  # of the signal that came
        self._moment = 0.0
        self._now: Callable[[int], BaseException] | None = None
        self._before: dict[int, Any] = {}
        self._group: Any = dist.new_group(backend="gloo") if processes > 1 else None
        self._votes: torch.Tensor | None = None
        self._work: Any = None

    def __enter__(self) -> StopRequest:
        try:
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
        except ValueError:  # not in the main thread, which alone gets signals
            pass
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._group is not None and kind is None:
            if self._work is not None:
                self._work.wait()
            dist.destroy_process_group(self._group)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        again = self.number is not None and time.monotonic() - self._moment > IMPATIENT
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is None:
            self.number, self._moment = number, time.monotonic()
        if self._now is not None:
            raise self._now(number)

    def agreed(self) -> bool:
        """Whether to stop after this step.

        Of several processes, all stop after the same one, a step after the first was asked: the
        answer of each step travels while the next is taken.
        """
        if self._group is None:
            return self.number is not None
        votes, work = self._votes, self._work
        self._votes = torch.tensor([float(self.number or 0)])
        self._work = dist.all_reduce(
            self._votes, dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        if votes is None:
            return False
        work.wait()
        if votes.item() and self.number is None:
            self.number = int(votes.item())
        return bool(votes.item())

    @contextmanager
    def at_once(self, stopped: Callable[[int], BaseException]) -> Iterator[None]:
        """In this block a signal raises what ``stopped`` makes of it; so does one that came."""
        self._now = stopped
        try:
            if self.number is not None:
                raise stopped(self.number)
            yield
        finally:
            self._now = None
