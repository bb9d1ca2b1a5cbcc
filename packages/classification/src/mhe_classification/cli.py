"""The command ``mhe-classification``."""

from __future__ import annotations

import sys

from mhe_core.training.command import dispatch

__all__ = ["main"]

COMMANDS = {
    "train": "mhe_classification.train",
    "test": "mhe_classification.test",
    "compare": "mhe_classification.compare",
    "predict": "mhe_classification.predict",
    "export": "mhe_classification.export",
}


def main() -> None:
    """Run ``mhe-classification train|test|compare|predict|export``."""
    sys.exit(dispatch("mhe-classification", COMMANDS))
