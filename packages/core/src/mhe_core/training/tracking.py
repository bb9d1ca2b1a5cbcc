"""``--tracker``: the records, settings and pictures of a run, in the logs of other programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from PIL import Image

from mhe_core.errors import UserError

__all__ = ["Trackers", "tracker_names"]

TENSORBOARD = "tensorboard"


def tracker_names(text: str) -> list[str]:
    """The trackers that ``--tracker`` names, all of which are installed.

    Args:
        text: none, or names of accelerate's trackers with commas between.

    Raises:
        UserError: for a name that accelerate does not know, or whose package is not installed.
    """
    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise UserError(f"expected --tracker none, or of {known}, got {name!r}")
        if name not in map(str, get_available_trackers()):
            package = "'mhe-core[tensorboard]'" if name == TENSORBOARD else name
            raise UserError(f"--tracker {name} is not installed: pip install {package}")
    return list(dict.fromkeys(names))


class Trackers:
    """The trackers of one run, begun with the first thing that they are given.

    TensorBoard's log is the run directory's folder ``tensorboard``, and a resumed run goes on in
    it, in place of the steps that it takes again. With the others a resumed run is a new log.

    Args:
        names: see :func:`tracker_names`; without any, nothing happens.
        path: the run directory.
        project: the name under which a tracker collects runs.
        settings: the run's settings, its hyperparameters.
    """

    def __init__(
        self, names: list[str], path: Path, project: str, settings: Mapping[str, Any]
    ) -> None:
        self.names, self.path, self.project = names, path, project
        self.settings = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in settings.items()
        }
        self._started: dict[str, Any] | None = None

    def log(self, record: Mapping[str, Any]) -> None:
        """Pass a record of metrics.jsonl on, under its step."""
        values = dict(record)
        step = values.pop("step")
        for tracker in self._at(step).values():
            tracker.log(values, step=step)

    def picture(self, name: str, file: Path, step: int) -> None:
        """Pass an image file on, to the trackers that take pictures."""
        for kind, tracker in self._at(step).items():
            if not hasattr(tracker, "log_images"):
                continue
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"))[None]
            layout = {"dataformats": "NHWC"} if kind == TENSORBOARD else {}
            tracker.log_images({name: pixels}, step=step, **layout)

    def finish(self) -> None:
        """Close the logs."""
        for tracker in (self._started or {}).values():
            tracker.finish()
        self._started = None

    def _at(self, step: int) -> dict[str, Any]:
        if self._started is None:
            self._started = {name: self._start(name, step) for name in self.names}
        return self._started

    def _start(self, name: str, step: int) -> Any:
        kind = LOGGER_TYPE_TO_CLASS[name]
        goes_on = name == TENSORBOARD and (self.path / TENSORBOARD).exists()
        if name == TENSORBOARD:
            tracker = kind(TENSORBOARD, str(self.path), purge_step=step)
        elif kind.requires_logging_directory:
            tracker = kind(self.project, str(self.path))
        else:
            tracker = kind(self.project)
        if hasattr(tracker, "start"):  # older ones of accelerate start by themselves
            tracker.start()
        if not goes_on:
            tracker.store_init_configuration(self.settings)
        return tracker
