"""The training loop that the applications share: seed, step, log, evaluate, checkpoint, resume."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from tqdm import tqdm

from mhe_core.training.batches import training_batches
from mhe_core.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from mhe_core.training.config import TrainingConfig
from mhe_core.training.images import ImageSet
from mhe_core.training.run import Run
from mhe_core.training.seeding import seed_all

__all__ = ["Loop", "TrainingDiverged", "TrainingInterrupted", "make_accelerator", "train_run"]

Batch = tuple[Tensor, Tensor]


class TrainingDiverged(FloatingPointError):
    """A metric is not finite; the last good checkpoint is untouched."""


class TrainingInterrupted(SystemExit):
    """The process was asked to stop, and its state is saved."""


class Stateful(Protocol):
    """What a checkpoint holds the state of: a module, an optimizer, an average, …."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take them back."""


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """Device, mixed precision and processes, as the flags and the launcher say."""
    AcceleratorState._reset_state()  # runs of one process may differ in precision
    if config.device not in ("auto", "cpu"):
        os.environ["ACCELERATE_TORCH_DEVICE"] = config.device
    return Accelerator(mixed_precision=config.amp, cpu=config.device == "cpu")


@dataclass
class Loop:
    """One run's steps.

    Attributes:
        run: the run directory; its config has the seed and the intervals.
        accelerator: device and processes.
        steps: how many in all.
        images: the training images.
        batch_size: images a step, over all processes.
        train_step: takes one step, ``train_step(step, batch)`` with ``step`` from 0, and returns
            scalars to be averaged over the logging interval, ``loss`` and ``penalty`` among them.
        state: everything that a step changes, by name.
        evaluate: figures of the present state, without changing it.
        evaluate_every: steps between two evaluations; one always ends the run.
        best: the figure of ``evaluate`` by which checkpoints/best is chosen (lowest), where an
            evaluation has it; without one, best is the last.
        facts: plain values that every checkpoint holds beside the state, such as the names of the
            classes: what it takes to build the networks again.
        sample: called after each step with the number of steps taken, for pictures.
    """

    run: Run
    accelerator: Accelerator
    steps: int
    images: ImageSet
    batch_size: int
    train_step: Callable[[int, Batch], Mapping[str, Tensor | float]]
    state: Mapping[str, Stateful]
    evaluate: Callable[[], dict[str, float]] | None = None
    evaluate_every: int | None = None
    best: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    sample: Callable[[int], None] | None = None

    _sums: dict[str, Tensor] = field(default_factory=dict, init=False)
    _count: int = field(default=0, init=False)
    _lowest: float = field(default=math.inf, init=False)
    _seconds: float = field(default=0.0, init=False)

    def __call__(self) -> dict[str, Any]:
        """Take the steps that remain; returns the last record of metrics.jsonl.

        Raises:
            TrainingDiverged: if a metric is not finite.
            TrainingInterrupted: on SIGINT or SIGTERM, after the step, with the state saved.
            CheckpointError: if the run cannot be resumed from its checkpoint.
        """
        config, start = self.run.config, self._restore()
        quiet = not self.accelerator.is_main_process or not sys.stderr.isatty()
        bar = tqdm(total=self.steps, initial=start, disable=quiet, unit="step")
        began = time.perf_counter()
        with bar, _stop_request(self.accelerator) as stopped:
            for step, batch in zip(range(start, self.steps), self.batches(start), strict=False):
                self.advance(step, batch)
                taken = step + 1
                self._seconds += time.perf_counter() - began
                bar.update()
                if self._due(self.evaluate_every, taken):
                    bar.set_postfix(self._log(taken, evaluated=True), refresh=False)
                elif self._due(config.log_every, taken):
                    bar.set_postfix(self._log(taken, evaluated=False), refresh=False)
                if self.sample is not None:
                    self.sample(taken)
                if self._due(config.checkpoint_every, taken) or stopped():
                    self._save("last", taken)
                if stopped() and taken < self.steps:
                    raise TrainingInterrupted(
                        f"stopped after step {taken} of {self.steps}, state saved: "
                        f"continue with --resume --output {self.run.path}"
                    )
                began = time.perf_counter()
        return self._finish()

    def batches(self, start: int) -> Iterator[Batch]:
        """This process's part of the training batches, from a step on."""
        return training_batches(
            self.images,
            self.batch_size,
            seed=self.run.config.seed,
            start=start,
            workers=self.run.config.workers,
            device=self.accelerator.device,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )

    def _due(self, every: int | None, taken: int) -> bool:
        return taken == self.steps or (every is not None and taken % every == 0)

    def advance(self, step: int, batch: Batch) -> None:
        """Take one step, and add its metrics to the interval's sums."""
        seed_all(self.run.config.seed, step, self.accelerator.process_index)
        for name, value in self.train_step(step, batch).items():
            value = torch.as_tensor(value, device=self.accelerator.device).detach().float()
            self._sums[name] = self._sums[name] + value if self._count else value
        self._count += 1

    def _means(self, taken: int) -> dict[str, float]:
        """The interval's means over steps and processes; all must be finite."""
        if not self._count:
            return {}
        names = list(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums, reduction="mean")
            self._sums = dict(zip(names, sums.unbind(), strict=True))
        means = dict(zip(names, (sums / self._count).tolist(), strict=True))
        if bad := [name for name, mean in means.items() if not math.isfinite(mean)]:
            self._write("diverged", taken)
            raise TrainingDiverged(
                f"{', '.join(bad)} not finite at step {taken}; the state is in "
                f"{self.run.checkpoints / 'diverged'}, the last good one, if any, in "
                f"{self.run.checkpoints / 'last'}: a lower --lr may help"
            )
        return means

    def _log(self, taken: int, evaluated: bool) -> dict[str, float]:
        record: dict[str, Any] = {"step": taken, **self._means(taken)}
        record["step_seconds"] = self._seconds / taken
        self._sums, self._count = {}, 0
        if evaluated and self.evaluate is not None:
            record.update(self.evaluate())
            chosen_by = record.get(self.best or "", math.inf)
            if chosen_by < self._lowest:
                self._lowest = chosen_by
                self._write("best", taken)
        self.run.log(record)
        hidden = ("step", "step_seconds")  # and, with a dot in their names, single layers' figures
        shown = {k: v for k, v in record.items() if k not in hidden and "." not in k}
        if evaluated and self.accelerator.is_main_process:
            figures = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            tqdm.write(f"step {taken}/{self.steps}  {figures}", file=sys.stdout)
            sys.stdout.flush()
        return shown

    def _save(self, name: str, taken: int) -> None:
        self._means(taken)  # a state that is not finite never replaces a good one
        self._write(name, taken)

    def _write(self, name: str, taken: int) -> None:
        content = {
            "step": taken,
            "facts": dict(self.facts),
            "state": {key: part.state_dict() for key, part in self.state.items()},
            "sums": self._sums,
            "count": self._count,
            "lowest": self._lowest,
            "seconds": self._seconds,
        }
        if self.accelerator.is_main_process:
            file = self.run.checkpoints / name
            save_checkpoint(file, content, keep_previous=name == "last")
        self.accelerator.wait_for_everyone()

    def _restore(self) -> int:
        """Take up the state of checkpoints/last, if there is one; returns the steps taken."""
        file = self.run.checkpoints / "last"
        taken = 0
        if file.exists():
            content = load_checkpoint(file)
            restore_state(self.state, content["state"], str(file))
            device = self.accelerator.device
            self._sums = {name: value.to(device) for name, value in content["sums"].items()}
            self._count, self._lowest = content["count"], content["lowest"]
            self._seconds, taken = content["seconds"], content["step"]
        self.run.forget_after(taken)
        return taken

    def _finish(self) -> dict[str, Any]:
        if self.accelerator.is_main_process and self.best is None:
            last, link = self.run.checkpoints / "last", self.run.checkpoints / ".best.writing"
            link.unlink(missing_ok=True)
            os.link(last, link)
            os.replace(link, self.run.checkpoints / "best")
        self.accelerator.wait_for_everyone()
        return {**self.run.metrics()[-1], "steps": self.steps, "seconds": self._seconds}


def restore_state(parts: Mapping[str, Stateful], saved: Mapping[str, Any], source: str) -> None:
    """Load each part's saved state.

    Raises:
        CheckpointError: if a part is missing or does not fit; names ``source``.
    """
    if missing := sorted(set(parts) - set(saved)):
        raise CheckpointError(f"{source} does not hold {', '.join(missing)}")
    for name, part in parts.items():
        try:
            part.load_state_dict(saved[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"the {name} in {source} does not fit: {error}") from error


def train_run(
    config: TrainingConfig, prepare: Callable[[Accelerator, Run], Loop]
) -> dict[str, Any]:
    """Start, continue or, if it is complete, look up the run in ``config.output``.

    Args:
        config: the settings.
        prepare: builds the networks on the accelerator's device, and their loop.

    Returns:
        The content of summary.json.
    """
    accelerator = make_accelerator(config)
    run = Run(config, main=accelerator.is_main_process)
    if run.summary is not None:
        return run.summary
    figures = prepare(accelerator, run)()
    del figures["step"]
    figures["step_seconds"] = figures["seconds"] / figures["steps"]
    return run.finish(figures, accelerator.device)


@contextmanager
def _stop_request(accelerator: Accelerator) -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM end a run after its step; of several processes none would wait."""
    asked: list[int] = []
    if accelerator.num_processes > 1:
        yield lambda: False
        return
    try:
        before = {
            number: signal.signal(number, lambda n, _: asked.append(n))
            for number in (signal.SIGINT, signal.SIGTERM)
        }
    except ValueError:  # not in the main thread, which alone gets signals
        before = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
