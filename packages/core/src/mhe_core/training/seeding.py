"""Everything random in a step is a function of (seed, step, rank).

So a resumed run needs no random state from the checkpoint, and draws what it would have drawn.
"""

from __future__ import annotations

import random

import numpy as np
import torch

__all__ = ["seed_all"]


def seed_all(seed: int, step: int = -1, rank: int = 0) -> None:
    """Seed Python's, NumPy's and torch's generators for one step of one process.

    Args:
        seed: the run's.
        step: the step about to be taken; −1 for the initial weights.
        rank: of the process; all draw the same initial weights.
    """
    words = np.random.SeedSequence([seed, step + 1, rank]).generate_state(2)
    random.seed(int(words[0]))
    np.random.seed(int(words[0]))  # noqa: NPY002  libraries such as timm draw from it
    torch.manual_seed((int(words[0]) << 32) + int(words[1]))
