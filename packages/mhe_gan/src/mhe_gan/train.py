"""``mhe-gan train``: one generator and one discriminator, one run directory."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, cast

import torch
from accelerate import Accelerator
from mhe_core import NetworkRegularizer, neuron_matrix
from mhe_core.autocast import without_autocast
from mhe_core.diagnostics.bounds import lower_bound
from mhe_core.errors import UserError, users_request
from mhe_core.training.clipping import clip_gradients
from mhe_core.training.command import parse, run_command
from mhe_core.training.compiling import compiled
from mhe_core.training.images import DataError, ImageSet
from mhe_core.training.loop import Batch, Loop, Stateful, TrainingDiverged, train_run
from mhe_core.training.processes import from_main_process
from mhe_core.training.run import Run
from mhe_core.training.seeding import seed_all
from torch import Tensor, nn

from mhe_gan.augment import augment
from mhe_gan.collapse import (
    LIMIT,
    TrainingCollapsed,
    alike_in_a_row,
    collapse_figures,
    goes_off,
)
from mhe_gan.config import GANConfig
from mhe_gan.data import load_split, to_images
from mhe_gan.losses import find_loss
from mhe_gan.metrics import find_metric
from mhe_gan.mistakes import StepsWithoutMistake
from mhe_gan.networks import (
    NOISE_DIM,
    create_networks,
    find_networks,
    fits_batch,
    singular_values,
)
from mhe_gan.penalties import LeCam, gradient_penalty
from mhe_gan.sample import (
    calibrate,
    class_names,
    draw_noise,
    generate,
    grid_columns,
    save_grid,
    scored_samples,
)
from mhe_gan.scores import Scorer
from mhe_gan.test import build_scorer

__all__ = ["Trainer", "main", "train"]

COMPARED = 512  # real images, and samples, whose features the collapse alarm compares


def train(
    config: GANConfig,
    scorer: Scorer | None = None,
    load: Callable[[GANConfig], ImageSet] = load_split,
) -> dict[str, Any]:
    """Train a GAN into the run directory ``config.output``, or continue it there.

    Args:
        config: the settings.
        scorer: scores samples every ``config.score_every`` steps; made from the settings if they
            ask for scores and there is none.
        load: reads the images; not called if the run is complete.

    Returns:
        The content of summary.json: losses, energy, singular values, scores if there are, ….

    Raises:
        DataError: if the images cannot be trained on.
        RunError: if the directory holds another run.
        TrainingDiverged: if a loss is not finite, or the discriminator made no mistake for long.
        TrainingCollapsed: if samples look alike for long, and ``config.stop_on_collapse`` is set.
    """
    return train_run(
        config, lambda accelerator, run: prepare(config, accelerator, scorer, load).loop(run)
    )


def prepare(
    config: GANConfig,
    accelerator: Accelerator,
    scorer: Scorer | None = None,
    load: Callable[[GANConfig], ImageSet] = load_split,
) -> Trainer:
    """The run's images, its scorer if it asks for scores, and what is to be trained."""
    processes = accelerator.num_processes
    fewest = config.batch_size * config.n_dis // processes // config.n_dis
    if 0 < fewest < 2 and not fits_batch(config.model, fewest):
        raise UserError(
            f"expected --batch-size at least {2 * processes} for the batch norms of the networks "
            f"{config.model}, two images a process, got {config.batch_size}"
        )
    images = load(config)
    if scorer is None and config.score_every is not None and accelerator.is_main_process:
        scorer = build_scorer(config, accelerator.device, load=lambda _: images)
    return Trainer(config, images, accelerator, scorer)


class Trainer:
    """Both networks, their optimizers and regularizers, and the step that they take together."""

    def __init__(
        self,
        config: GANConfig,
        images: ImageSet,
        accelerator: Accelerator,
        scorer: Scorer | None = None,
    ) -> None:
        self.config, self.images, self.accelerator = config, images, accelerator
        self.scorer = scorer
        self.steps = config.total_steps(len(images))
        self.taken = 0
        device = accelerator.device
        if config.conditional and len(images.classes) < 2:
            raise DataError(f"expected images of several classes, those of {config.data} have one")
        self.class_counts = images.labels.bincount(minlength=len(images.classes)).tolist()
        seed_all(config.seed)
        self.generator, self.discriminator = (
            network.to(device)
            for network in create_networks(
                config.model,
                width=config.width,
                image_size=images.size[0],
                spectral_normed=config.spectral_norm,
                channels=config.channels,
                classes=images.classes if config.conditional else (),
                class_counts=self.class_counts,
            )
        )
        self.loss = find_loss(config.loss)
        self.chosen_by = find_metric(config.best_by)
        pair = find_networks(config.model)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.regularizer = self._regularizer(
            self.discriminator, config.hidden_weight or 0.0, without=pair.output_layer
        )
        self.generator_regularizer = self._regularizer(
            self.generator, config.generator_weight, without=pair.noise_layer
        )
        self.energy = NetworkRegularizer(
            self.discriminator,
            "mhe-core:mhe",
            None,
            hidden_options={"s": 0},
            output_layer=pair.output_layer,
        )  # what every run reports, whatever it was trained with
        layers = map(self.discriminator.get_submodule, self.energy.terms())
        sizes = [neuron_matrix(layer).shape[-2:] for layer in layers]
        self.floor = sum(lower_bound(N, d, s=0) for N, d in sizes)
        adam = partial(torch.optim.Adam, lr=config.lr, betas=(config.beta1, config.beta2))
        self.fast_generator, self.fast_discriminator = (
            compiled(network, config.compile, device)
            for network in (self.generator, self.discriminator)
        )
        self.wrapped_generator, self.generator_optimizer = accelerator.prepare(
            self.fast_generator, adam(self.generator.parameters())
        )
        self.wrapped_discriminator, self.discriminator_optimizer = accelerator.prepare(
            self.fast_discriminator, adam(self.discriminator.parameters())
        )
        mean = partial(accelerator.reduce, reduction="mean")
        self.lecam = LeCam(reduce=mean)
        limit = self.loss.no_mistake
        self.without_mistake = None if limit is None else StepsWithoutMistake(limit, mean)

    def _regularizer(
        self, network: nn.Module, weight: float, without: str
    ) -> NetworkRegularizer | None:
        """The energy of all convolutions; None if it has no weight.

        The linear layers are left out: the discriminator's has one neuron, and those of the
        generator are the thousands of values of its first map.
        """
        rules = self.config.rules if network is self.discriminator else None
        hidden = None if self.config.regularizer == "none" else self.config.regularizer
        if not rules and (hidden is None or weight == 0):
            return None
        with users_request(f"--regularizer {self.config.regularizer}"):
            return NetworkRegularizer(
                network,
                hidden=hidden,
                output=None,
                hidden_weight=weight,
                hidden_options=self.config.energy_options() if hidden else {},
                output_layer=without,
                rules=rules,
            ).to(self.accelerator.device)

    def loop(self, run: Run) -> Loop:
        """The steps of this run, over its training images."""
        config, accelerator = self.config, self.accelerator
        parts: dict[str, Stateful | None] = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average if config.ema else None,
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
            "regularizer": self.regularizer,
            "generator_regularizer": self.generator_regularizer,
            "lecam": self.lecam if config.lecam else None,
            "without_mistake": self.without_mistake,
            "scaler": accelerator.scaler,
        }
        return Loop(
            run=run,
            accelerator=accelerator,
            steps=self.steps,
            images=self.images,
            batch_size=config.batch_size * config.n_dis,
            train_step=self.step,
            state={name: part for name, part in parts.items() if part is not None},
            new_state=frozenset({"without_mistake"}),
            figures=self.figures,
            evaluate=self.evaluate if config.evaluate_every is not None else None,
            evaluate_every=config.evaluate_every,
            best="selection" if config.score_every is not None else None,
            facts={
                "image_size": self.images.size[0],
                "classes": list(class_names(self.generator)),
                "class_counts": self.class_counts,
            },
            after_step=lambda taken: self.after_step(run, taken),
            after_record=lambda record: self.after_record(run, record),
        )

    def step(self, step: int, batch: Batch) -> dict[str, Tensor | float]:
        """One generator step and ``n_dis`` discriminator steps on uint8 images [B, 3, h, w].

        Generated images have the real ones' classes, so that these are equally frequent.
        """
        self.taken = step + 1
        self.wrapped_generator.train()
        self.wrapped_discriminator.train()
        inputs = [self._images(batch[0]), *([batch[1]] if self.config.conditional else [])]
        parts = list(zip(*(x.tensor_split(self.config.n_dis) for x in inputs), strict=True))
        g_loss, g_penalty = self._generator_step(*parts[0])
        steps = [self._discriminator_step(*part) for part in parts]
        means = {name: sum(one[name] for one in steps) / len(steps) for name in steps[0]}
        d_loss, d_penalty = means.pop("discriminator_loss"), means.pop("penalty")
        if self.config.ema:
            update_average(self.average, self.generator, self.config.ema, step)
        if self.without_mistake is not None:
            self.without_mistake.watch(torch.as_tensor(d_loss))
        return {
            "loss": g_loss + d_loss + g_penalty + d_penalty,
            "generator_loss": g_loss,
            "discriminator_loss": d_loss,
            "penalty": g_penalty + d_penalty,
            **means,
        }

    def _generator_step(self, real: Tensor, *classes: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and penalty before the step; the discriminator's weights get no gradient.

        It draws as many images as there are real ones, of their classes, if it knows any.
        """
        self.discriminator.requires_grad_(False)
        self.generator_optimizer.zero_grad()
        penalty = self._penalty(self.generator_regularizer)
        with self.accelerator.autocast():
            # Not through DDP, which would wait for the discriminator's gradients.
            fake = self._augmented(self.wrapped_generator(self._noise(len(real)), *classes))
            logits = self.fast_discriminator(fake, *classes)
        loss = self.loss.generator(logits.float())
        self.accelerator.backward(loss + penalty)
        clip_gradients(self.accelerator, self.generator_optimizer, self.config.clip_grad)
        self.generator_optimizer.step()
        self.discriminator.requires_grad_(True)
        return loss.detach(), penalty.detach()

    def _discriminator_step(self, real: Tensor, *classes: Tensor) -> dict[str, Tensor]:
        """Loss and penalties before the step, by name.

        Real and generated images go through the discriminator together, so that its spectral norm
        takes one power iteration. An energy reads the raw weights, and what depends on lengths runs
        the iteration on copies: neither takes one.
        """
        config = self.config
        self.discriminator_optimizer.zero_grad()
        penalty = self._penalty(self.regularizer)
        with self.accelerator.autocast():
            with torch.no_grad():
                fake = self.fast_generator(self._noise(len(real)), *classes)
            images = self._augmented(torch.cat([real, fake.to(real.dtype)]))
            twice = (torch.cat([of_real, of_real]) for of_real in classes)
            logits = self.wrapped_discriminator(images, *twice).float()
        of_real, of_fake = logits.split(len(real))
        loss = self.loss.discriminator(of_real, of_fake)
        total = loss + penalty
        found = {"discriminator_loss": loss, "penalty": penalty}
        if config.lecam:
            found["lecam"] = self.lecam(of_real, of_fake)
            total = total + config.lecam * found["lecam"]
        if config.r1:
            found["r1"] = self._gradient_penalty(images[: len(real)], *classes)
            total = total + config.r1 / 2 * config.r1_every * found["r1"]
        self.accelerator.backward(total)
        clip_gradients(self.accelerator, self.discriminator_optimizer, config.clip_grad)
        self.discriminator_optimizer.step()
        return {name: value.detach() for name, value in found.items()}

    def _gradient_penalty(self, real: Tensor, *classes: Tensor) -> Tensor:
        """R1 every so many steps, 0 between them.

        In float32, and not through DDP or a compiled network, which know no second derivatives;
        DDP averages the gradients all the same. In evaluation mode, so that spectral norm takes no
        power iteration.
        """
        if (self.taken - 1) % self.config.r1_every:
            return torch.zeros((), device=real.device)
        self.discriminator.eval()
        with without_autocast(real.device):
            penalty = gradient_penalty(self.discriminator, real.float(), *classes)
        self.discriminator.train()
        return penalty

    def _images(self, pixels: Tensor) -> Tensor:
        return to_images(pixels, self.config.channels)

    def _augmented(self, images: Tensor) -> Tensor:
        return augment(images, self.config.augmentations())

    def _noise(self, num: int) -> Tensor:
        return torch.randn(num, NOISE_DIM, device=self.accelerator.device)

    def _penalty(self, regularizer: NetworkRegularizer | None) -> Tensor:
        every = self.config.penalty_every
        if regularizer is None or (self.taken - 1) % every:
            return torch.zeros((), device=self.accelerator.device)
        regularizer.update(self.config.lr)
        return every * regularizer()

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """The discriminator's energy and singular values."""
        singular = {k: float(v) for k, v in singular_values(self.discriminator).items()}
        energy = float(self.energy())
        return {
            "discriminator_energy": energy,
            "discriminator_above_floor": energy - self.floor,
            "largest_singular_value": max(singular.values()),
            **{f"singular_value.{name}": value for name, value in singular.items()},
        }

    def evaluate(self) -> dict[str, float]:
        """Figures of the main process's samples: whether they are alike, and scores, if asked for.

        ``selection`` is lower where the score that chooses checkpoints is better.
        """

        def figures() -> dict[str, float]:
            generator = self.sampled
            found = self.collapse(generator)
            if self.scorer is None:
                return found
            config = self.config
            scores = self.scorer(scored_samples(generator, config.num_samples, config.seed))
            sign = -1 if self.chosen_by.higher_is_better else 1
            return {**found, **scores, "selection": sign * scores[self.chosen_by.name]}

        return from_main_process(self.accelerator, figures)

    @torch.no_grad()
    def collapse(self, generator: nn.Module) -> dict[str, float]:
        """How much more alike samples are than real images, in the discriminator's eyes.

        It looks in evaluation mode, so that spectral norm takes no power iteration.
        """
        samples = scored_samples(generator, COMPARED, self.config.seed, batch_size=64)
        self.discriminator.eval()
        features = cast("Callable[[Tensor], Tensor]", self.discriminator.features)
        found = [
            torch.cat([features(self._images(part)).float() for part in batches])
            for batches in (self.compared.to(self.accelerator.device).split(64), samples)
        ]
        self.discriminator.train()
        return collapse_figures(*found)

    @cached_property
    def compared(self) -> Tensor:
        """Real images that samples are compared with, uint8 [N, 3, h, w], always the same ones."""
        generator = torch.Generator().manual_seed(self.config.seed)
        chosen = torch.randperm(len(self.images), generator=generator)[:COMPARED]
        return self.images.__getitems__(chosen.tolist())[0]

    @property
    def sampled(self) -> nn.Module:
        """A copy of the generator whose images are shown and scored."""
        if self.config.ema:
            return calibrate(copy.deepcopy(self.average))
        return copy.deepcopy(self.generator).eval()

    def after_step(self, run: Run, taken: int) -> None:
        """Draw the grid of samples, and stop where the discriminator has nothing left to learn.

        A state that is not yet a whole checkpoint interval without a mistake is saved; so either
        the last checkpoint or the one before it is from before the first such step. Scores bring
        checkpoints of their own between these; the best one is then from before.
        """
        config = self.config
        if run.main and (taken % config.sample_every == 0 or taken == self.steps):
            noise = draw_noise(64, config.seed)
            grid = torch.cat(list(generate(self.sampled, noise)))
            columns = grid_columns(self.generator, len(grid))
            file = run.path / "samples" / f"step{taken:06d}.png"
            save_grid(grid, file, columns)
            run.trackers.picture("samples", file, taken)
        if self.without_mistake is None or taken % config.checkpoint_every:
            return
        if (count := self.without_mistake.count) >= config.checkpoint_every:
            raise TrainingDiverged(
                f"the discriminator's loss was below {self.loss.no_mistake} for {count} steps up "
                f"to step {taken}, so that the generator learns nothing; the state before that is "
                f"{run.checkpoints / 'previous'} or {run.checkpoints / 'last'}: a lower --lr, "
                "--spectral-norm or fewer --n-dis may help"
            )

    def after_record(self, run: Run, record: dict[str, Any]) -> None:
        """Stop where the samples looked alike at the last evaluations; their state is saved."""
        if not self.config.stop_on_collapse or "collapse" not in record:
            return
        known = from_main_process(
            self.accelerator,
            lambda: {one["step"]: one["collapse"] for one in run.metrics() if "collapse" in one},
        )
        if goes_off(known):
            count = alike_in_a_row(known)
            raise TrainingCollapsed(
                f"the samples look alike to the discriminator: collapse, 0 for real images and 1 "
                f"for one image again and again, was above {LIMIT} at {count} "
                f"evaluations in a row, {record['collapse']:.2f} at step {record['step']}, whose "
                f"state is {run.checkpoints / 'last'}: a lower --lr, "
                "--spectral-norm or --augment may help"
            )


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the average's parameters towards the network's; buffers are copied as they are.

    A mean of spectral norm's vectors would not be a singular vector; batch norm's statistics are
    set when the average is used, see :func:`mhe_gan.sample.calibrate`. In the first steps the
    decay is (1 + t) / (10 + t), so that the initial weights are forgotten.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)
    for copied, buffer in zip(average.buffers(), network.buffers(), strict=True):
        copied.copy_(buffer)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    train(parse(GANConfig, arguments, "mhe-gan train"))


if __name__ == "__main__":
    sys.exit(run_command("mhe-gan train", main, sys.argv[1:]))
