"""How far a run is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

__all__ = ["Progress"]

QUIET = 60.0  # seconds between two lines in a log, but for evaluations


class Progress:
    """Reports the steps of a run.

    Args:
        steps: how many in all.
        start: how many were taken before.
        images: a step's.
        shown: whether this process reports.
    """

    def __init__(self, steps: int, start: int, images: int, shown: bool = True) -> None:
        self.steps, self.start, self.images, self.shown = steps, start, images, shown
        self.began = self.said = time.perf_counter()
        self.seconds = 0.0  # in steps, without evaluations and checkpoints
        self.taken = start
        quiet = not shown or not sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=start, disable=quiet, unit="step")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self, seconds: float) -> None:
        """One more step was taken."""
        self.taken += 1
        self.seconds += seconds
        self.bar.update()

    def report(self, figures: Mapping[str, float], evaluated: bool) -> None:
        """A record was written: a line for an evaluation, the others to the bar.

        Without a bar, for a record that comes long after the last line, too.
        """
        if not self.shown:
            return
        single = {k: v for k, v in figures.items() if k != "step" and "." not in k}
        shown = {k: v for k, v in single.items() if not k.endswith("_seconds")}
        self.bar.set_postfix({**shown, "images/s": f"{self.speed():.0f}"}, refresh=False)
        late = self.bar.disable and time.perf_counter() - self.said > QUIET
        if evaluated or late:
            self.said = time.perf_counter()
            text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            line = f"step {self.taken}/{self.steps}  {text}{self.rate()}"
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def speed(self) -> float:
        """Images a second, over the steps taken here."""
        return (self.taken - self.start) * self.images / max(self.seconds, 1e-9)

    def rate(self) -> str:
        """Images a second and the time left, as text; nothing before the first step."""
        taken = self.taken - self.start
        if not taken:
            return ""
        left = (time.perf_counter() - self.began) / taken * (self.steps - self.taken)
        ending = f", {tqdm.format_interval(left)} left" if self.taken < self.steps else ""
        return f"  ({self.speed():.0f} images/s{ending})"
