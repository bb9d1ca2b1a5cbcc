"""The command ``sphereface-plus``."""

from __future__ import annotations

import sys

from mhe_core.training.command import dispatch

__all__ = ["main"]

COMMANDS = {
    "align": "sphereface_plus.align",
    "pairs": "sphereface_plus.draw",
    "train": "sphereface_plus.train",
    "test": "sphereface_plus.test",
    "compare": "sphereface_plus.compare",
    "embed": "sphereface_plus.embed",
    "verify": "sphereface_plus.verify",
    "evaluate": "sphereface_plus.evaluate",
    "export": "sphereface_plus.export",
}


def main() -> None:
    """Run ``sphereface-plus align|pairs|train|test|compare|embed|verify|evaluate|export``."""
    sys.exit(dispatch("sphereface-plus", COMMANDS))
