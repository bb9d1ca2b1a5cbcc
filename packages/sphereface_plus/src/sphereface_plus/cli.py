"""The command ``sphereface-plus``."""

from __future__ import annotations

import sys

from mhe_core.training.command import dispatch

from sphereface_plus import align, compare, test, train

__all__ = ["main"]


def main() -> None:
    """Run ``sphereface-plus align|train|test|compare``."""
    sys.exit(
        dispatch(
            "sphereface-plus",
            {
                "align": align.main,
                "train": train.main,
                "test": test.main,
                "compare": compare.main,
            },
        )
    )
