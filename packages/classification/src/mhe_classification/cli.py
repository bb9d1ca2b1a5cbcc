"""The command ``mhe-classification``."""

from __future__ import annotations

import sys

from mhe_core.training.command import dispatch

from mhe_classification import compare, test, train

__all__ = ["main"]


def main() -> None:
    """Run ``mhe-classification train|test|compare``."""
    commands = {"train": train.main, "test": test.main, "compare": compare.main}
    sys.exit(dispatch("mhe-classification", commands))
