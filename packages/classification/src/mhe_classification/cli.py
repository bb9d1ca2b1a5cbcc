"""The command ``mhe-classification``."""

from __future__ import annotations

import sys

from mhe_core.training.command import dispatch

from mhe_classification import compare, export, predict, test, train

__all__ = ["main"]


def main() -> None:
    """Run ``mhe-classification train|test|compare|predict|export``."""
    commands = {
        "train": train.main,
        "test": test.main,
        "compare": compare.main,
        "predict": predict.main,
        "export": export.main,
    }
    sys.exit(dispatch("mhe-classification", commands))
