"""``sphereface-plus train``: one embedding of faces, one run directory."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from mhe_core import hyperspherical_energy, sharded_hyperspherical_energy
from mhe_core.diagnostics import angle_statistics
from mhe_core.errors import UserError, users_request
from mhe_core.training.augment import normalize, random_flip
from mhe_core.training.clipping import clip_gradients
from mhe_core.training.command import parse, run_command
from mhe_core.training.compiling import compiled
from mhe_core.training.loop import Batch, Loop, Stateful, train_run
from mhe_core.training.run import Run
from mhe_core.training.seeding import seed_all
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from sphereface_plus.augmentation import augment
from sphereface_plus.config import FaceConfig
from sphereface_plus.data import FaceSets, load_faces
from sphereface_plus.embedding import FaceModel, verify
from sphereface_plus.initial import start_from
from sphereface_plus.penalty import Penalty
from sphereface_plus.sampling import sample_classes, sampled_loss
from sphereface_plus.sharded import (
    ShardedSphereFaceHead,
    gather_optimizer_state,
    loss_parallel,
)
from sphereface_plus.verification import roc

__all__ = ["main", "train"]


def train(
    config: FaceConfig, load: Callable[[FaceConfig], FaceSets] = load_faces
) -> dict[str, Any]:
    """Train an embedding into the run directory ``config.output``, or continue it there.

    Args:
        config: the settings.
        load: reads the images; not called if the run is complete.

    Returns:
        The content of summary.json: ``test_accuracy`` and ``test_error`` (fractions) where there
        are test pairs, ``class_angle`` (degrees), ``class_energy``, ….

    Raises:
        DataError: if the images cannot be trained on.
        RunError: if the directory holds another run.
        TrainingDiverged: if the loss is not finite.
    """
    return train_run(config, lambda accelerator, run: prepare(config, accelerator, load).loop(run))


def prepare(
    config: FaceConfig,
    accelerator: Accelerator,
    load: Callable[[FaceConfig], FaceSets] = load_faces,
) -> Trainer:
    """The run's images, and what is to be trained on them."""
    return Trainer(config, load(config), accelerator)


class Trainer:
    """Model, penalty and optimizer of one run, and the step that they take together."""

    def __init__(self, config: FaceConfig, data: FaceSets, accelerator: Accelerator) -> None:
        self.config, self.data, self.accelerator = config, data, accelerator
        self.steps = config.total_steps(len(data.train))
        seed_all(config.seed)
        self.model = FaceModel(
            config, len(data.train.classes), data.train.size, config.shard_classes
        )
        if config.init is not None:
            start_from(config.init, self.model, config.model, data.train.classes)
        check_image_size(config, self.model.backbone, data.train.size)
        if config.sample_rate < 1 and not getattr(self.model.head, "may_sample_classes", False):
            raise UserError(
                "--sample-rate goes with a head that may be computed on a part of its class "
                f"vectors, got --head {config.head} (see may_sample_classes of heads.Head)"
            )
        self.model.to(accelerator.device)
        with users_request(f"--regularizer {config.regularizer}"):
            self.penalty = Penalty(config, self.model).to(accelerator.device)
        with users_request(f"--optimizer {config.optimizer}"):
            optimizer = create_optimizer_v2(
                self.model,
                opt=config.optimizer,
                lr=config.lr,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                filter_bias_and_bn=False,
            )
        fast = compiled(self.model.backbone, config.compile, accelerator.device)
        self.backbone, self.optimizer = accelerator.prepare(fast, optimizer)
        self.loss_context: Callable[[], AbstractContextManager] = contextlib.nullcontext
        if isinstance(self.model.head, ShardedSphereFaceHead):
            self.head: nn.Module = self.model.head
            self.loss_context = loss_parallel
            gather_optimizer_state(optimizer, self.model.head)
        else:
            self.head = accelerator.prepare(self.model.head)

    def loop(self, run: Run) -> Loop:
        """The steps of this run, over its training images."""
        config, accelerator = self.config, self.accelerator
        state: dict[str, Stateful] = {
            "model": self.model,
            "penalty": self.penalty,
            "optimizer": self.optimizer,
        }
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
            evaluate_every=config.eval_every or -(-self.steps // 10),
            best="validation_error" if self.data.validation is not None else None,
            facts={
                "classes": list(self.data.train.classes),
                "image_size": list(self.data.train.size),
            },
            others={} if self.data.test is None else {"--pairs": self.data.test.digest},
        )

    def step(self, step: int, batch: Batch) -> dict[str, Tensor | float]:
        """One optimizer step on uint8 images [B, 3, h, w] and labels [B]."""
        pixels, labels = batch
        pixels = augment(pixels, self.config.augmentations())
        images = normalize(random_flip(pixels) if self.config.flip else pixels)
        lr = learning_rate(self.config, step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.backbone.train()
        self.head.train()
        self.penalty.update(step, self.model.class_vectors, lr)
        self.optimizer.zero_grad()
        with self.loss_context():
            embeddings = self.backbone(images)
            if self.config.shard_classes:  # of the loss of all processes' images, to be averaged
                embeddings.register_hook(lambda g: g * self.accelerator.num_processes)
            classes = self.sampled_classes(step, labels)
            loss = self.loss(embeddings, labels, classes)
            # After the head, which may replace its class vectors by their directions.
            penalty = self.penalty(step, self.model.class_vectors, labels, classes)
            self.accelerator.backward(loss + penalty)
        clip_gradients(self.accelerator, self.optimizer, self.config.clip_grad)
        self.optimizer.step()
        return {
            "loss": loss.detach() + penalty.detach(),
            "margin_loss": loss,
            "penalty": penalty,
            "lr": lr,
        }

    def sampled_classes(self, step: int, labels: Tensor) -> Tensor | None:
        """Those of this process's class vectors that the step's loss is over; None: all."""
        config, head = self.config, self.model.head
        if config.sample_rate == 1:
            return None
        everyones, shard = self.accelerator.gather(labels), 0
        if isinstance(head, ShardedSphereFaceHead):
            everyones, shard = everyones - head.start, self.accelerator.process_index
        number = len(self.model.class_vectors)
        return sample_classes(everyones, number, config.sample_rate, config.seed, step, shard)

    def loss(self, embeddings: Tensor, labels: Tensor, classes: Tensor | None) -> Tensor:
        """The head's loss, over the sampled classes if there are such."""
        if classes is None:
            return self.head(embeddings, labels)
        if self.config.shard_classes:
            return self.head(embeddings, labels, classes)
        return sampled_loss(self.head, self.model.class_vectors, embeddings, labels, classes)

    def evaluate(self) -> dict[str, float]:
        """Verification of unseen people, and how far apart the class vectors are."""
        figures: dict[str, float] = {}
        for name in ("validation", "test"):
            pairs = getattr(self.data, name)
            if pairs is not None:
                found = verify(self.model.backbone, pairs, self.accelerator)
                accuracy = float(found.accuracy.mean())
                figures[f"{name}_accuracy"] = accuracy
                figures[f"{name}_error"] = 1 - accuracy
                figures[f"{name}_eer"] = roc(found.scores, pairs.same).eer
        if self.config.shard_classes:
            energy = sharded_hyperspherical_energy(self.model.class_vectors.detach())
            return {**figures, "class_energy": float(energy)}
        return {**figures, **class_vector_figures(self.model.class_vectors)}


def check_image_size(config: FaceConfig, backbone: nn.Module, size: tuple[int, int]) -> None:
    """Whether the network takes images of this size.

    Raises:
        ValueError: if it does not.
    """
    training = backbone.training
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros(1, 3, *size))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"expected images of a size that {config.model} takes, got {size[0]}x{size[1]}: "
            f"{error} (--image-size resizes them)"
        ) from error
    finally:
        backbone.train(training)


def learning_rate(config: FaceConfig, step: int, steps: int) -> float:
    """A linear warm-up, then --milestones, or half a cosine down to 0."""
    warmup = (config.warmup or 0.0) * steps
    lr = (config.lr or 0.0) * min(1.0, (step + 1) / (warmup + 1))
    if config.milestones is not None:
        return lr * 0.1 ** sum(step >= milestone for milestone in config.milestones)
    return lr * (1 + math.cos(math.pi * max(0.0, step - warmup) / (steps - warmup))) / 2


@torch.no_grad()
def class_vector_figures(class_vectors: Tensor) -> dict[str, float]:
    """Smallest angle between two of them in degrees, and their full-space energy for s = 2."""
    smallest = angle_statistics(class_vectors).smallest
    return {
        "class_angle": math.degrees(smallest),
        "class_energy": float(hyperspherical_energy(class_vectors)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    train(parse(FaceConfig, arguments, "sphereface-plus train"))


if __name__ == "__main__":
    sys.exit(run_command("sphereface-plus train", main, sys.argv[1:]))
