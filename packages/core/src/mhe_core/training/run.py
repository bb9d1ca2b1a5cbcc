"""A run directory: config.yaml, metrics.jsonl, summary.json, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Set
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from mhe_core.errors import UserError
from mhe_core.training.config import TrainingConfig, flag
from mhe_core.training.files import write_atomically
from mhe_core.training.lock import FolderLock, Locked
from mhe_core.training.tracking import Trackers, tracker_names

__all__ = ["CONFIG_FILE", "Run", "RunError", "read_config", "saved_config"]

C = TypeVar("C", bound=TrainingConfig)

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
PROJECT = ("mhe-core", "mhe-classification", "sphereface-plus", "mhe-gan")

# Settings that do not change what a run computes: a resumed run may change them.
FREE = {
    "output",
    "resume",
    "device",
    "compile",
    "workers",
    "checkpoint_every",
    "data_dir",
    "download",
    "tracker",
}
LENGTH = {"steps", "epochs"}  # a complete run may be given more
NOTES = {"extended_at"}  # written by the run itself


class RunError(UserError):
    """A run directory that cannot be started, continued or read; says what to do."""


class Run:
    """The run directory of one training run: :meth:`open` looks, :meth:`claim` writes.

    Args:
        config: the resolved settings; ``config.output`` is the directory.
        main: whether this process writes (of several, one does).
    """

    def __init__(self, config: TrainingConfig, main: bool = True) -> None:
        self.config = config
        self.main = main
        self.path = Path(config.output)
        self.checkpoints = self.path / "checkpoints"
        self._lock = FolderLock(self.path)
        self._claimed = self._continues = False
        self._trackers: Trackers | None = None

    def open(self) -> dict[str, Any] | None:
        """:meth:`look`, and lock a run that is to be continued.

        Raises:
            RunError: if another process is training it, too.
        """
        complete = self.look()
        if complete is None and (self.path / CONFIG_FILE).exists():
            self._take_lock()
            self._continues = True
        return complete

    def look(self) -> dict[str, Any] | None:
        """Whether the run can be started or continued here; changes nothing.

        A complete one that is given more ``--steps`` or ``--epochs`` is to be continued, and
        ``config.extended_at`` then says at which step it was complete.

        Returns:
            The summary of a complete run; None for one that is to be trained.

        Raises:
            RunError: if the directory holds another run, or one that was not asked to be resumed.
            UserError: if a tracker is asked for that is not installed.
        """
        tracker_names(self.config.tracker)
        if not (self.path / CONFIG_FILE).exists():
            return None
        if not self.config.resume:
            raise RunError(
                f"{self.path} already holds a run: continue it with --resume, "
                "or give another --output"
            )
        saved, finished = plain(saved_config(type(self.config), self.path)), self.summary
        longer = is_longer(self.config, saved, finished)
        movable = self.config.movable | self.config.movable_weights
        check_same(self.path, plain(self.config), saved, longer, movable)
        self.config.extended_at = list(saved["extended_at"])
        if finished is None or not longer:
            return finished
        self.config.extended_at.append(finished["steps"])
        return None

    def claim(self) -> None:
        """Make the directory this run's: lock it, and write its settings; once.

        Called when the first step was taken, so that settings with which none can be taken claim
        nothing.

        Raises:
            RunError: if another run was started here in the meantime.
        """
        if not self.main or self._claimed:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        file = self.path / CONFIG_FILE
        if file.exists() and not self._continues:
            raise RunError(f"another run was started in {self.path} in the meantime")
        if self._continues and (summary := self.summary) is not None:
            (self.path / SUMMARY_FILE).replace(self.path / f"summary-{summary['steps']}.json")
        if not self._continues:  # a note in another run's settings, from which these were taken
            self.config.extended_at = []
        settings = plain(self.config)
        if not file.exists() or read_config(self.path) != settings:
            write_atomically(file, yaml.safe_dump(settings, sort_keys=False))
        self.checkpoints.mkdir(exist_ok=True)
        self._claimed = True

    def _take_lock(self) -> None:
        try:
            self._lock.acquire()
        except Locked as error:
            raise RunError(f"{error}: wait for its end, or give another --output") from None

    def close(self) -> None:
        """Give the lock back, and end the trackers' logs."""
        if self._trackers is not None:
            self._trackers.finish()
        self._lock.release()

    @property
    def summary(self) -> dict[str, Any] | None:
        """The final figures, once the run is complete."""
        file = self.path / SUMMARY_FILE
        return json.loads(file.read_text()) if file.exists() else None

    def log(self, record: dict[str, Any]) -> None:
        """Append one record to metrics.jsonl, and pass it to the trackers."""
        if self.main:
            with (self.path / METRICS_FILE).open("a") as file:
                file.write(json.dumps(record) + "\n")
            self.trackers.log(record)

    @property
    def trackers(self) -> Trackers:
        """Those that the settings name; none but on the process that writes."""
        if self._trackers is None:
            names = tracker_names(self.config.tracker) if self.main else []
            project = type(self.config).__module__.split(".")[0]
            self._trackers = Trackers(names, self.path, project, plain(self.config))
        return self._trackers

    def forget_after(self, step: int) -> None:
        """Drop the records of steps that a resumed run takes again, and a half-written line."""
        file = self.path / METRICS_FILE
        if not self.main or not file.exists():
            return
        kept = []
        for line in file.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if record["step"] <= step:
                kept.append(line + "\n")
        write_atomically(file, "".join(kept))

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl."""
        file = self.path / METRICS_FILE
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def finish(self, figures: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Write summary.json: the figures and what produced them."""
        made = {"seed": self.config.seed, "device": str(device), **versions()}
        summary = {**figures, **made}
        if self.config.extended_at:
            summary["extended_at"] = self.config.extended_at
        if self.main:
            write_atomically(self.path / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
        return summary


def read_config(path: Path) -> dict[str, Any]:
    """The settings that a run was started with.

    Raises:
        RunError: if ``path`` is not a run directory.
    """
    file = Path(path) / CONFIG_FILE
    if not file.exists():
        raise RunError(f"expected a run directory with {CONFIG_FILE}, got {path}")
    try:
        settings = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{file} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise RunError(f"expected {file} to hold a run's settings")
    return settings


def saved_config(config_class: type[C], path: Path) -> C:
    """The settings of the run in ``path``, wherever it was when it was trained.

    Raises:
        RunError: if ``path`` is not a run directory, or another program's.
    """
    settings = read_config(path)
    known = {field.name for field in dataclasses.fields(config_class)}
    if unknown := sorted(set(settings) - known):
        raise RunError(
            f"{path} is another program's run: its {CONFIG_FILE} has {', '.join(unknown)}"
        )
    return config_class(**{**settings, "output": Path(path)})


def is_longer(
    config: TrainingConfig, saved: dict[str, Any], finished: dict[str, Any] | None
) -> bool:
    """Whether the settings ask a complete run for more steps or epochs than it was given."""
    if finished is None:
        return False
    if config.steps is not None:
        longer: bool = config.steps > finished["steps"]
        return longer
    return (config.epochs or 0) > (saved.get("epochs") or math.inf)


def check_same(
    path: Path,
    settings: dict[str, Any],
    saved: dict[str, Any],
    longer: bool = False,
    movable: Set[str] = frozenset(),
) -> None:
    """Hold settings against those that a run was started with.

    The files and folders that movable settings name may be elsewhere: whether they hold the same
    is seen when they are read.

    Raises:
        RunError: if they differ in what changes the run; names the flags.
    """
    free = FREE | NOTES | (LENGTH if longer else set())
    free = free | {k for k in movable if is_elsewhere(settings[k], saved.get(k))}
    differing = [k for k in settings if k not in free and saved.get(k) != settings[k]]
    if not differing:
        return
    changes = ", ".join(f"{flag(k)} was {saved.get(k)!r}, is {settings[k]!r}" for k in differing)
    hint = "; a complete run can be given more, no other" if set(differing) <= LENGTH else ""
    raise RunError(f"{path} was started with other settings: {changes}{hint}")


def is_elsewhere(place: str | None, saved: str | None) -> bool:
    """Whether both name something, and ``place`` is there: a file or folder that may have moved."""
    return place is not None and saved is not None and Path(place).exists()


def plain(config: Any) -> dict[str, Any]:
    """A dataclass as plain values, paths as text."""
    settings = dataclasses.asdict(config)
    return {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}


def versions() -> dict[str, str]:
    """Versions of Python, torch and the project's packages that are installed."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in PROJECT:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
