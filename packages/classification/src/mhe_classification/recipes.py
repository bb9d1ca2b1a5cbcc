"""What a recipe sets where the user sets nothing.

``released`` is the published program, every detail of it: its loss adds 1e-4 to the probabilities,
which starves the gradient, and its learning rate has no warm-up, so that networks sit at chance
for thousands of steps before they train. ``stable`` is plain cross entropy with a warm-up.
``fast`` is what trains small networks well in few epochs: Nesterov's momentum at a high learning
rate with a warm-up, smoothed labels and averaged weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mhe_core.training.naming import own_name
from torch import Tensor

__all__ = ["loss_function", "recipe_defaults"]

STABLE: dict[str, Any] = {
    "optimizer": "momentum",
    "lr": 0.02,
    "ema": 0.0,
    "loss": "cross_entropy",
    "label_smoothing": 0.0,
    "schedule": "cosine",
    "milestones": [],
    "warmup": 0.1,
    "bn_momentum": 0.1,
    "convention": "paper",
}
FAST: dict[str, Any] = {
    **STABLE,
    "optimizer": "sgd",  # timm's, which is Nesterov's
    "lr": 0.1,
    "warmup": 0.2,
    "label_smoothing": 0.1,
    "ema": 0.998,
}
RELEASED: dict[str, Any] = {
    "optimizer": "momentum",
    "lr": 0.1,
    "ema": 0.0,
    "loss": "released",
    "label_smoothing": 0.01,
    "schedule": "multistep",
    "milestones": [20_000, 30_000, 37_500],
    "warmup": 0.0,
    "bn_momentum": 0.001,
    "convention": "released_code",
    "steps": 42_500,
}
RELEASED_COMHE: dict[str, Any] = {
    **RELEASED,
    "milestones": [30_000, 50_000, 65_000],
    "steps": 75_000,
}
PUBLISHED_PROJECTIONS: dict[str, dict[str, Any]] = {
    "comhe_random": {"projection_dim": 40, "num_projections": 20},
}


def recipe_defaults(recipe: str, regularizer: str) -> dict[str, Any]:
    """The settings of a recipe, by name; the published CoMHE runs had a longer schedule."""
    if recipe != "released":
        return {"stable": STABLE, "fast": FAST}[recipe]
    own = own_name(regularizer) or ""
    schedule = RELEASED_COMHE if own.startswith("comhe") else RELEASED
    return {**schedule, **PUBLISHED_PROJECTIONS.get(own, {})}


def loss_function(name: str, label_smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of logits [B, C] and labels [B] or, after mixup, probabilities [B, C].

    Args:
        name: ``cross_entropy``, or ``released``: −Σ y log(softmax + 1e-4).
        label_smoothing: y gives this probability to all classes alike and the rest to the label.
    """
    if name == "cross_entropy":
        return torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def released(logits: Tensor, labels: Tensor) -> Tensor:
        classes = logits.shape[-1]
        y = F.one_hot(labels, classes) * (1 - label_smoothing) + label_smoothing / classes
        return -(y * torch.log(F.softmax(logits.float(), -1) + 1e-4)).sum(-1).mean()

    return released
