"""The command ``sphereface-plus``."""

from __future__ import annotations

import sys

from mhe_core.training.command import dispatch

from sphereface_plus import align, compare, draw, embed, evaluate, export, test, train, verify

__all__ = ["main"]


def main() -> None:
    """Run ``sphereface-plus align|pairs|train|test|compare|embed|verify|evaluate|export``."""
    sys.exit(
        dispatch(
            "sphereface-plus",
            {
                "align": align.main,
                "pairs": draw.main,
                "train": train.main,
                "test": test.main,
                "compare": compare.main,
                "embed": embed.main,
                "verify": verify.main,
                "evaluate": evaluate.main,
                "export": export.main,
            },
        )
    )
