"""The command ``mhe-gan``."""

from __future__ import annotations

import sys

from mhe_core.training.command import dispatch

from mhe_gan import compare, sample, test, train

__all__ = ["main"]


def main() -> None:
    """Run ``mhe-gan train|sample|test|compare``."""
    commands = {
        "train": train.main,
        "sample": sample.main,
        "test": test.main,
        "compare": compare.main,
    }
    sys.exit(dispatch("mhe-gan", commands))
