"""Killing processes at a chosen moment."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from support.forks import forked

__all__ = ["changes", "kill", "kill_again_and_again"]


def kill(process: BaseProcess, when: Callable[[], bool], delay: float = 0.0) -> None:
    """SIGKILL a process ``delay`` seconds after something holds; an error if it ends before."""
    while not when():
        assert process.is_alive(), f"it ended before it was killed: exit code {process.exitcode}"
        time.sleep(0.0005)
    time.sleep(delay)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"


def changes(file: Path, times: int) -> Callable[[], bool]:
    """Whether a file has been replaced so many times, as seen from call to call."""
    seen = {_written(file)}

    def happened() -> bool:
        seen.add(_written(file))
        return len(seen) > times

    return happened


def kill_again_and_again(train: Callable[[Any], Any], config: Any, kills: int = 3) -> None:
    """Kill a run soon after a checkpoint and start it again, so many times, then let it end."""
    chance = random.Random(0)
    for _ in range(kills):
        with forked(train, config) as process:
            after = changes(config.output / "checkpoints" / "last", chance.randint(1, 3))
            kill(process, after, delay=chance.uniform(0, 0.05))
    with forked(train, config) as process:
        process.join()
        assert process.exitcode == 0


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0
