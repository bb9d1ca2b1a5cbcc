"""The command ``mhe-gan``."""

from __future__ import annotations

import sys

from mhe_core.training.command import dispatch

from mhe_gan import compare, sample, score, test, train

__all__ = ["main"]


def main() -> None:
    """Run ``mhe-gan train|sample|test|compare|score``."""
    commands = {
        "train": train.main,
        "sample": sample.main,
        "test": test.main,
        "compare": compare.main,
        "score": score.main,
    }
    sys.exit(dispatch("mhe-gan", commands))
