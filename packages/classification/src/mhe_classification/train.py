"""``mhe-classification train``: one classifier, one run directory."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from mhe_core import NetworkRegularizer
from mhe_core.errors import UserError, users_request
from mhe_core.training.augment import random_crop, random_flip
from mhe_core.training.clipping import clip_gradients
from mhe_core.training.command import parse, run_command
from mhe_core.training.compiling import compiled
from mhe_core.training.loop import Batch, Loop, Stateful, train_run
from mhe_core.training.run import Run
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from mhe_classification.config import ClassificationConfig
from mhe_classification.data import Splits, load_splits
from mhe_classification.initial import new_model
from mhe_classification.preprocessing import new_normalize
from mhe_classification.recipes import loss_function
from mhe_classification.test import energies, error_rate

__all__ = ["main", "train"]


def train(
    config: ClassificationConfig, load: Callable[[ClassificationConfig], Splits] = load_splits
) -> dict[str, Any]:
    """Train a classifier into the run directory ``config.output``, or continue it there.

    Args:
        config: the settings.
        load: reads the images; not called if the run is complete.

    Returns:
        The content of summary.json: ``test_error``, ``test_accuracy`` (fractions), energies, ….

    Raises:
        DataError: if the images cannot be trained on.
        RunError: if the directory holds another run.
        TrainingDiverged: if the loss is not finite.
    """
    return train_run(config, lambda accelerator, run: prepare(config, accelerator, load).loop(run))


def prepare(
    config: ClassificationConfig,
    accelerator: Accelerator,
    load: Callable[[ClassificationConfig], Splits] = load_splits,
) -> Trainer:
    """The run's images, and what is to be trained on them."""
    return Trainer(config, load(config), accelerator)


def build_regularizer(config: ClassificationConfig, model: nn.Module) -> NetworkRegularizer | None:
    """The regularizer that the flags describe, or None."""
    hidden = None if config.regularizer == "none" else config.regularizer
    output = None if config.output_regularizer == "none" else config.output_regularizer
    if hidden is None and not config.rules:
        return None
    output = hidden and output
    with users_request(f"--regularizer {config.regularizer}"):
        return NetworkRegularizer(
            model,
            hidden=hidden,
            output=output,
            hidden_weight=config.hidden_weight,
            output_weight=config.output_weight,
            hidden_options=config.hidden_options() if hidden else {},
            output_options={**config.energy_options(output), **config.output_options}
            if output
            else {},
            rules=config.rules,
        )


def build_mixup(config: ClassificationConfig, num_classes: int, processes: int) -> Mixup | None:
    """Timm's mixup and cutmix of a batch and its reverse, or None."""
    if not config.mixup and not config.cutmix:
        return None
    if config.batch_size % (2 * processes):
        raise UserError(
            f"expected an even --batch-size for each of {processes} process(es) with --mixup or "
            f"--cutmix, got {config.batch_size} in all"
        )
    return Mixup(
        config.mixup,
        config.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )


def save_memory(model: nn.Module, name: str) -> None:
    """Let a model recompute its activations; a UserError if it cannot."""
    enable = getattr(model, "set_grad_checkpointing", None)
    try:
        if enable is None:
            raise NotImplementedError
        enable(True)
    except (AssertionError, NotImplementedError) as error:  # the first is timm's
        raise UserError(f"--grad-checkpointing: {name} has none") from error


class Trainer:
    """Model, loss, regularizer and optimizer of one run, and the step that they take together."""

    def __init__(
        self, config: ClassificationConfig, data: Splits, accelerator: Accelerator
    ) -> None:
        self.config, self.data, self.accelerator = config, data, accelerator
        self.steps = config.total_steps(len(data.train))
        classes = len(data.train.classes)
        self.normalize = new_normalize(config).to(accelerator.device)
        self.model = new_model(config, data.train.classes, data.train.size[0])
        self.model.to(accelerator.device).to(memory_format=self.normalize.memory_format)
        if config.grad_checkpointing:
            save_memory(self.model, config.model)
        self.regularizer = build_regularizer(config, self.model)
        if self.regularizer is not None:
            self.regularizer.to(accelerator.device)
        self.loss = loss_function(config.loss or "", config.label_smoothing or 0.0)
        self.mixup = build_mixup(config, classes, accelerator.num_processes)
        if self.mixup is not None:
            self.loss = nn.CrossEntropyLoss()  # mixup smooths the labels itself
        self.erase = RandomErasing(config.random_erasing, mode="pixel", device=accelerator.device)
        with users_request(f"--optimizer {config.optimizer}"):
            optimizer = create_optimizer_v2(
                self.model,
                opt=config.optimizer,
                lr=config.lr,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                filter_bias_and_bn=not config.decay_norm_bias,
            )
        self.schedule = create_scheduler_v2(
            optimizer,
            sched=config.schedule,
            num_epochs=self.steps,
            decay_milestones=config.milestones,
            warmup_epochs=round((config.warmup or 0.0) * self.steps),
            warmup_lr=(config.lr or 0.0) / 100,
            step_on_epochs=False,
            updates_per_epoch=1,
        )[0]
        if self.schedule is None:
            raise UserError(
                "expected --schedule as one of timm's, such as cosine, multistep, step, poly or "
                f"tanh, got {config.schedule!r}"
            )
        self.ema = ModelEmaV3(self.model, decay=config.ema) if config.ema else None
        fast = compiled(self.model, config.compile, accelerator.device)
        self.prepared, self.optimizer = accelerator.prepare(fast, optimizer)

    def loop(self, run: Run) -> Loop:
        """The steps of this run, over its training images."""
        config, accelerator = self.config, self.accelerator
        state: dict[str, Stateful] = {"model": self.model, "optimizer": self.optimizer}
        if self.regularizer is not None:
            state["regularizer"] = self.regularizer
        if self.ema is not None:
            state["ema"] = self.ema
        if accelerator.scaler is not None:
            state["scaler"] = accelerator.scaler
        return Loop(
            run=run,
            accelerator=accelerator,
            steps=self.steps,
            images=self.data.train,
            batch_size=config.batch_size,
            train_step=self.step,
            state=state,
            evaluate=self.evaluate,
            evaluate_every=config.eval_every or len(self.data.train) // config.batch_size,
            best="validation_error" if self.data.validation is not None else None,
            facts={
                "classes": list(self.data.train.classes),
                "image_size": self.data.train.size[0],
                **self.normalize.constants(),
            },
        )

    def step(self, step: int, batch: Batch) -> dict[str, Tensor | float]:
        """One optimizer step on uint8 images [B, 3, h, w] and labels [B]."""
        pixels, labels = batch
        pixels = random_crop(pixels)
        images = self.normalize(random_flip(pixels) if self.config.flip else pixels)
        targets = labels
        if self.mixup is not None:
            images, targets = self.mixup(images, labels)
        images = self.erase(images)
        self.schedule.step_update(step)
        lr = self.optimizer.param_groups[0]["lr"]
        self.prepared.train()
        self.optimizer.zero_grad()
        penalty = torch.zeros((), device=images.device)
        if self.regularizer is not None:
            self.regularizer.update(lr)
            penalty = self.regularizer()
        loss, correct = self._backward(images, targets, labels, penalty)
        clip_gradients(self.accelerator, self.optimizer, self.config.clip_grad)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, step=step)
        return {
            "loss": loss + penalty.detach(),
            "penalty": penalty,
            "train_accuracy": correct / len(labels),
            "lr": lr,
        }

    def _backward(
        self, images: Tensor, targets: Tensor, labels: Tensor, penalty: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss plus the penalty; the mean loss and the number correct."""
        total = torch.zeros((), device=images.device)
        correct = torch.zeros((), device=images.device)
        parts = list(
            zip(
                *(x.tensor_split(self.config.accumulate) for x in (images, targets, labels)),
                strict=True,
            )
        )
        for number, (part, target, label) in enumerate(parts, start=1):
            final = number == len(parts)
            wait = contextlib.nullcontext() if final else self.accelerator.no_sync(self.prepared)
            with wait:
                with self.accelerator.autocast():
                    logits = self.prepared(part)
                    loss = self.loss(logits, target) * (len(part) / len(images))
                self.accelerator.backward(loss + penalty if final else loss)
            total += loss.detach()
            correct += (logits.argmax(-1) == label).sum()
        return total, correct

    def evaluate(self) -> dict[str, float]:
        """Errors on held-out images, and the energies of the layers."""
        model = self.ema.module if self.ema is not None else self.model
        figures = energies(model)
        for name in ("validation", "test"):
            images = getattr(self.data, name)
            if images is not None:
                error = error_rate(
                    nn.Sequential(self.normalize, model),
                    images,
                    self.accelerator,
                    workers=self.config.workers,
                )
                figures |= {f"{name}_error": error, f"{name}_accuracy": 1 - error}
        return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(ClassificationConfig, arguments, "mhe-classification train")
    config.check_hyperparameters()
    train(config)


if __name__ == "__main__":
    sys.exit(run_command("mhe-classification train", main, sys.argv[1:]))
