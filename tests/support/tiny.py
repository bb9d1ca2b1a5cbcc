"""A program of mhe_core.training that takes a second: two linear layers on made-up images."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from mhe_core import NetworkRegularizer
from mhe_core.training.command import parse, run_command
from mhe_core.training.compiling import compiled
from mhe_core.training.config import TrainingConfig
from mhe_core.training.images import ImageSet, load_folder
from mhe_core.training.loop import Loop, train_run
from mhe_core.training.seeding import seed_all
from torch import nn

__all__ = ["TinyConfig", "main", "records", "train"]


@dataclass(kw_only=True)
class TinyConfig(TrainingConfig):
    """Train two linear layers.

    Attributes:
        eval_every: steps between two evaluations.
        step_seconds: how long a step sleeps.
        evaluation: of what a long evaluation consists: none, sleep, or blocked in a C function.
        fails: a step that raises a ValueError, as a bug does; below 0 for none.
        init: weights that are not read.
    """

    movable_weights: ClassVar[frozenset[str]] = frozenset({"init"})

    eval_every: int = 3
    step_seconds: float = 0.0
    evaluation: str = "none"
    fails: int = -1
    init: Path | None = None


def made_up(num: int = 64) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num, 3, 4, 4), dtype=torch.uint8, generator=generator)
    return ImageSet(torch.arange(num) % 4, tuple("abcd"), (4, 4), pixels)


def long_evaluation(kind: str) -> None:
    """Say that it began, and take a minute or more."""
    if kind == "blocked":  # one that no signal interrupts, as it does C's sleep
        # Said by another thread, as a signal that came before the call would be learnt of.
        threading.Timer(0.3, print, ["evaluating"], {"flush": True}).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    else:
        print("evaluating", flush=True)
        time.sleep(60)


def train(config: TinyConfig, evaluate: Callable[[int], dict[str, float]] | None = None) -> dict:
    """Train, or go on; ``evaluate(taken)`` may stand in for the evaluation."""

    def prepare(accelerator, run):
        seed_all(config.seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 4))
        model.to(accelerator.device)
        regularizer = NetworkRegularizer(model, "half_mhe", "mhe")
        fast = compiled(model, config.compile, accelerator.device)
        wrapped, optimizer = accelerator.prepare(fast, torch.optim.SGD(model.parameters(), 0.1))
        images = load_folder(Path(config.data)) if Path(config.data).is_dir() else made_up()
        taken = 0

        def step(number, batch):
            nonlocal taken
            if number == config.fails:
                raise ValueError("a bug")
            time.sleep(config.step_seconds)
            pixels, labels = batch
            loss = nn.functional.cross_entropy(wrapped(pixels / 255 - 0.5), labels)
            penalty = 0.1 * regularizer()
            optimizer.zero_grad()
            accelerator.backward(loss + penalty)
            optimizer.step()
            taken = number + 1
            return {"loss": loss, "penalty": penalty}

        def figures():
            if config.evaluation != "none":
                long_evaluation(config.evaluation)
            if evaluate is not None:
                return evaluate(taken)
            return {"error": float(model[1].weight.detach().std()), "drawn": float(torch.rand(()))}

        return Loop(
            run=run,
            accelerator=accelerator,
            steps=config.total_steps(len(images)),
            images=images,
            batch_size=config.batch_size,
            train_step=step,
            state={"model": model, "optimizer": optimizer},
            evaluate=figures,
            evaluate_every=config.eval_every,
        )

    return train_run(config, prepare)


def records(path: Path) -> list[dict]:
    """The records of a run without the wall clock."""
    from mhe_core.training.run import Run

    lines = Run(TrainingConfig(output=path)).metrics()
    return [{k: v for k, v in r.items() if not k.endswith("_seconds")} for r in lines]


def main(arguments: Sequence[str]) -> None:
    train(parse(TinyConfig, arguments, "tiny"))


if __name__ == "__main__":
    sys.exit(run_command("tiny", main, sys.argv[1:]))
