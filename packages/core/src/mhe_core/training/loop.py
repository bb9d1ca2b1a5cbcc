"""The training loop that the applications share: seed, step, log, evaluate, checkpoint, resume."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from mhe_core.errors import UserError
from mhe_core.training.batches import training_batches
from mhe_core.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    weights_digest,
)
from mhe_core.training.config import TrainingConfig, flag
from mhe_core.training.files import keep_as
from mhe_core.training.images import ImageSet
from mhe_core.training.processes import from_main_process, make_accelerator
from mhe_core.training.progress import Progress
from mhe_core.training.run import Run
from mhe_core.training.seeding import seed_all
from mhe_core.training.stopping import StopRequest, TrainingInterrupted
from mhe_core.training.wrappers import load_state, state_of

__all__ = ["Loop", "TrainingDiverged", "TrainingInterrupted", "train_run"]

Batch = tuple[Tensor, Tensor]


class TrainingDiverged(UserError, FloatingPointError):
    """A metric is not finite; the last good checkpoint is untouched."""


class Stateful(Protocol):
    """What a checkpoint holds the state of: a module, an optimizer, an average, …."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take them back."""


@dataclass
class Loop:
    """One run's steps.

    After a step come, each at its own interval and at the last step: a record in metrics.jsonl, an
    evaluation, a checkpoint. A checkpoint comes before the evaluation that is due with it, so that
    a process that is stopped in the evaluation loses nothing; a resumed run then begins with it.

    Attributes:
        run: the run directory; its config has the seed and the intervals.
        accelerator: device and processes.
        steps: how many in all.
        images: the training images.
        batch_size: images a step, over all processes.
        train_step: takes one step, ``train_step(step, batch)`` with ``step`` from 0, and returns
            scalars to be averaged since the record before, ``loss`` and ``penalty`` among them.
        state: everything that a step changes, by name.
        new_state: names of state that checkpoints did not always hold: a run whose checkpoint
            does not goes on with it as it is at the beginning.
        figures: what is quickly said of the present state, for every record.
        evaluate: figures of the present state that take their time, without changing it.
        evaluate_every: steps between two evaluations.
        best: the figure of ``evaluate`` by which checkpoints/best is chosen (lowest), where an
            evaluation has it; without one, best is the last.
        facts: plain values that every checkpoint holds beside the state, such as the names of the
            classes: what it takes to build the networks again.
        others: what stands for other data than the images, such as those it is verified on, by
            flag: a run is continued only where these are the same, wherever they are.
        after_step: called after each step with the number of steps taken, for pictures.
        after_record: called on all processes with each record once it is written; what it raises
            ends the run, with its state saved where the record has an evaluation.
    """

    run: Run
    accelerator: Accelerator
    steps: int
    images: ImageSet
    batch_size: int
    train_step: Callable[[int, Batch], Mapping[str, Tensor | float]]
    state: Mapping[str, Stateful]
    new_state: Set[str] = frozenset()
    figures: Callable[[], dict[str, float]] | None = None
    evaluate: Callable[[], dict[str, float]] | None = None
    evaluate_every: int | None = None
    best: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    after_step: Callable[[int], None] | None = None
    after_record: Callable[[dict[str, Any]], None] | None = None

    _sums: dict[str, Tensor] = field(default_factory=dict, init=False)
    _count: int = field(default=0, init=False)
    _lowest: float = field(default=math.inf, init=False)
    _seconds: float = field(default=0.0, init=False)
    _saved: int = field(default=0, init=False)  # the step of checkpoints/last

    def __call__(self) -> dict[str, Any]:
        """Take the steps that remain; returns the last record of metrics.jsonl.

        Raises:
            TrainingDiverged: if a metric is not finite.
            TrainingInterrupted: when asked to stop by a signal, with the state saved.
            CheckpointError: if the run cannot be resumed from its checkpoint.
        """
        start, recorded = self._restore()
        main = self.accelerator.is_main_process
        progress = Progress(self.steps, start, self.batch_size, shown=main)
        with StopRequest(self.accelerator.num_processes) as stop, progress:
            if start and not recorded:
                self._record(start, stop, progress)
            began = time.perf_counter()
            for step, batch in zip(range(start, self.steps), self.batches(start), strict=False):
                self.advance(step, batch)
                taken, seconds = step + 1, time.perf_counter() - began
                self._seconds += seconds
                progress.step(seconds)
                self._after(taken, stop, progress)
                if stop.agreed() and taken < self.steps:
                    self._save(taken)
                    raise self._interrupted(taken, stop.number)
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

    def advance(self, step: int, batch: Batch) -> None:
        """Take one step, and add its metrics to the interval's sums."""
        seed_all(self.run.config.seed, step, self.accelerator.process_index)
        for name, value in self.train_step(step, batch).items():
            value = torch.as_tensor(value, device=self.accelerator.device).detach().float()
            self._sums[name] = self._sums[name] + value if self._count else value
        self._count += 1

    def _after(self, taken: int, stop: StopRequest, progress: Progress) -> None:
        """Whatever is due after a step."""
        self.run.claim()
        if self.after_step is not None:
            self.after_step(taken)
        if self._evaluates(taken) or self._due(self.run.config.checkpoint_every, taken):
            self._save(taken)
        self._record(taken, stop, progress)

    def _due(self, every: int | None, taken: int) -> bool:
        return taken == self.steps or (every is not None and taken % every == 0)

    def _evaluates(self, taken: int) -> bool:
        return self.evaluate is not None and self._due(self.evaluate_every, taken)

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

    def _record(self, taken: int, stop: StopRequest, progress: Progress) -> None:
        """Write the record that is due at a step, if one is, with an evaluation, if one is."""
        evaluates = self._evaluates(taken)
        if not evaluates and not self._due(self.run.config.log_every, taken):
            return
        record: dict[str, Any] = {"step": taken, **self._means(taken)}
        record["step_seconds"] = self._seconds / taken
        if self.figures is not None:
            record.update(self.figures())
        if evaluates and self.evaluate is not None:
            seed_all(self.run.config.seed, taken, self.accelerator.process_index)
            with stop.at_once(lambda number: self._interrupted(taken, number)):
                record.update(self.evaluate())
            chosen_by = record.get(self.best or "", math.inf)
            if chosen_by < self._lowest:
                self._lowest = chosen_by
                self._write("best", taken)
        self._sums, self._count = {}, 0
        self.run.log(record)
        progress.report(record, evaluates)
        if self.after_record is not None:
            self.after_record(record)

    def _save(self, taken: int) -> None:
        """Write checkpoints/last, unless it is of this step."""
        if self._saved != taken:
            self._means(taken)  # a state that is not finite never replaces a good one
            self._write("last", taken)
            self._saved = taken

    def _write(self, name: str, taken: int) -> None:
        content = {
            "step": taken,
            "facts": dict(self.facts),
            "images": self.images.digest,
            "others": self._others,
            "state": {key: state_of(part) for key, part in self.state.items()},
            "sums": self._sums,
            "count": self._count,
            "seconds": self._seconds,
        }
        if self.accelerator.is_main_process:
            file = self.run.checkpoints / name
            save_checkpoint(file, content, keep_previous=name == "last")
        self.accelerator.wait_for_everyone()

    def _interrupted(self, taken: int, number: int | None) -> TrainingInterrupted:
        message = (
            f"stopped after step {taken} of {self.steps}, state saved: "
            f"continue with --resume --output {self.run.path}"
        )
        return TrainingInterrupted(message, number or signal.SIGINT)

    def _restore(self) -> tuple[int, bool]:
        """Take up the state of checkpoints/last, if there is one.

        Returns:
            The steps taken, and whether their last has its record, if one was due.
        """
        file = self.run.checkpoints / "last"
        taken = 0
        if file.exists():
            content = load_checkpoint(file)
            self._check_data(content, file)
            saved = content["state"]
            lacking = self.new_state - set(saved)
            kept = {name: part for name, part in self.state.items() if name not in lacking}
            restore_state(kept, saved, str(file))
            device = self.accelerator.device
            self._sums = {name: value.to(device) for name, value in content["sums"].items()}
            self._count = content["count"]
            self._seconds, self._saved = content["seconds"], content["step"]
            taken = content["step"]
        self.run.forget_after(taken)
        recorded, self._lowest = from_main_process(self.accelerator, lambda: self._recorded(taken))
        if recorded:
            self._sums, self._count = {}, 0
        return taken, recorded

    def _recorded(self, taken: int) -> tuple[bool, float]:
        """Whether a step has its record, and the lowest figure that best was chosen by."""
        records = self.run.metrics()
        lowest = min([math.inf, *(record.get(self.best or "", math.inf) for record in records)])
        return bool(records) and records[-1]["step"] == taken, lowest

    def _check_data(self, content: Mapping[str, Any], file: Path) -> None:
        """The images are those that the run was trained on, wherever they are now; others, too."""
        if content.get("images", self.images.digest) != self.images.digest:
            raise CheckpointError(
                f"{file} was trained on other images than those of {self.run.config.data}: "
                "the same, at the same or another place, are needed to continue"
            )
        saved = content.get("others", {})  # there was a time without
        changed = [name for name, its in self._others.items() if saved.get(name, its) != its]
        if changed:
            raise CheckpointError(
                f"{file} is of a run with other {' and '.join(changed)}: the same, at the same or "
                "another place, are needed to continue"
            )

    @cached_property
    def _others(self) -> dict[str, str]:
        """What the run depends on beside its images and settings, by flag."""
        config = self.run.config
        weights = {flag(k): weights_digest(getattr(config, k)) for k in config.movable_weights}
        return {**self.others, **weights}

    def _finish(self) -> dict[str, Any]:
        self.run.claim()
        if self.accelerator.is_main_process and self.best is None:
            keep_as(self.run.checkpoints / "last", self.run.checkpoints / "best")
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
            load_state(part, saved[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"the {name} in {source} does not fit: {error}") from error


def train_run(
    config: TrainingConfig, prepare: Callable[[Accelerator, Run], Loop]
) -> dict[str, Any]:
    """Start, continue or, if it is complete, look up the run in ``config.output``.

    Args:
        config: the settings.
        prepare: reads the images and builds the networks on the accelerator's device, and their
            loop; on every process.

    Returns:
        The content of summary.json.
    """
    accelerator = make_accelerator(config.device, config.amp)
    run = Run(config, main=accelerator.is_main_process)
    try:
        complete = from_main_process(accelerator, run.open)
        if complete is not None:
            return complete
        figures = prepare(accelerator, run)()
        del figures["step"]
        figures["step_seconds"] = figures["seconds"] / figures["steps"]
        return run.finish(figures, accelerator.device)
    except KeyboardInterrupt:
        message = f"interrupted: continue with --resume --output {run.path}"
        raise TrainingInterrupted(message) from None
    finally:
        run.close()
