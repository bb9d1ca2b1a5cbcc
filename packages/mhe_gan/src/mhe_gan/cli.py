"""The command ``mhe-gan``."""

from __future__ import annotations

import sys

from mhe_core.training.command import dispatch

__all__ = ["main"]

COMMANDS = {
    "train": "mhe_gan.train",
    "sample": "mhe_gan.sample",
    "test": "mhe_gan.test",
    "compare": "mhe_gan.compare",
    "score": "mhe_gan.score",
}


def main() -> None:
    """Run ``mhe-gan train|sample|test|compare|score``."""
    sys.exit(dispatch("mhe-gan", COMMANDS))
