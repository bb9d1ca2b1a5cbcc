"""A run directory: config.yaml, metrics.jsonl, summary.json, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from mhe_core.training.config import TrainingConfig, flag

__all__ = ["CONFIG_FILE", "Run", "RunError", "read_config", "write_atomically"]

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
PROJECT = ("mhe-core", "mhe-classification", "sphereface-plus", "mhe-gan")

# Settings that do not change what a run computes: a resumed run may change them.
FREE = {"output", "resume", "device", "workers", "checkpoint_every", "data_dir", "download"}


class RunError(ValueError):
    """A run directory that cannot be started, continued or read; says what to do."""


class Run:
    """The run directory of one training run.

    Args:
        config: the resolved settings; ``config.output`` is the directory.
        main: whether this process writes (of several, one does).

    Raises:
        RunError: if the directory holds another run, or one that was not asked to be resumed.
    """

    def __init__(self, config: TrainingConfig, main: bool = True) -> None:
        self.config = config
        self.main = main
        self.path = Path(config.output)
        self.checkpoints = self.path / "checkpoints"
        settings = plain(config)
        if not main:  # whether the directory is new is for the process to see that fills it
            return
        if (self.path / CONFIG_FILE).exists():
            self._check_continues(settings)
        else:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / CONFIG_FILE, yaml.safe_dump(settings, sort_keys=False))

    def _check_continues(self, settings: dict[str, Any]) -> None:
        if not self.config.resume:
            raise RunError(
                f"{self.path} already holds a run: continue it with --resume, "
                "or give another --output"
            )
        saved = read_config(self.path)
        differing = [k for k in settings if k not in FREE and saved.get(k) != settings[k]]
        if differing:
            changes = ", ".join(
                f"{flag(k)} was {saved.get(k)!r}, is {settings[k]!r}" for k in differing
            )
            raise RunError(f"{self.path} was started with other settings: {changes}")

    @property
    def summary(self) -> dict[str, Any] | None:
        """The final figures, once the run is complete."""
        file = self.path / SUMMARY_FILE
        return json.loads(file.read_text()) if file.exists() else None

    def log(self, record: dict[str, Any]) -> None:
        """Append one record to metrics.jsonl."""
        if self.main:
            with (self.path / METRICS_FILE).open("a") as file:
                file.write(json.dumps(record) + "\n")

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
        summary = {**figures, "seed": self.config.seed, "device": str(device), **versions()}
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
    return yaml.safe_load(file.read_text())


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


def write_atomically(file: Path, text: str) -> None:
    """Write under a temporary name and rename: a reader never sees half a file."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w") as temporary:
            temporary.write(text)
            temporary.flush()
            os.fsync(temporary.fileno())
        os.chmod(name, 0o644)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise
