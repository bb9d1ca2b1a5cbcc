"""The settings of a GAN's run, and of its scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mhe_core.errors import UserError
from mhe_core.training.compare import comma_separated
from mhe_core.training.config import TrainingConfig
from mhe_core.training.naming import own_name

from mhe_gan.augment import AUGMENTATIONS
from mhe_gan.losses import find_loss
from mhe_gan.networks import find_networks

__all__ = ["GANConfig", "ScoreConfig"]

# The published program adds its energy twice, each time with half of this weight.
PUBLISHED_WEIGHT = {True: 2e-7, False: 2e-6}  # with and without spectral norm
PUBLISHED_STEPS = 200_000


@dataclass(kw_only=True)
class ScoreConfig:
    """How generated images are scored.

    Attributes:
        num_samples: generated images that are scored.
        feature_extractor: what to score with in place of Inception: the run directory of a
            classifier trained by mhe-classification, dinov2, clip, or what an installed package
            offers, NAME or NAME:PATH.
        weights: file of Inception's weights; default: torch-fidelity downloads them.
        reference: the split whose images FID and KID compare with.
    """

    num_samples: int = 50_000
    feature_extractor: str | None = None
    weights: Path | None = None
    reference: Literal["train", "test"] = "train"

    def __post_init__(self) -> None:
        """Raise a ValueError for a setting out of range."""
        if self.num_samples < 10:
            raise UserError(f"expected --num-samples at least 10, got {self.num_samples}")


@dataclass(kw_only=True)
class GANConfig(TrainingConfig, ScoreConfig):
    """Train a GAN; by default the published one with spectral norm and MHE.

    Attributes:
        model: dcgan, with SNDCGAN's discriminator, resnet, as in SN-GAN, or what an installed
            package offers.
        conditional: draw images of a given class: conditional batch norm in the generator, a
            projection in the discriminator; as published for resnet.
        channels: 3, or 1 for grey images.
        spectral_norm: divide each of the discriminator's weights by its largest singular value.
        loss: non_saturating, hinge, or what an installed package offers.
        regularizer: a registered regularizer for the discriminator's layers, or none.
        hidden_weight: weight of each layer's energy; default, as published: 2e-7 with spectral
            norm, 2e-6 without.
        output_weight: not used: the discriminator's output layer has one neuron.
        generator_weight: weight of the same regularizer on the generator's convolutions.
        penalty_every: steps between two uses of the regularizers, each of which then counts that
            many times; 1 is as published, more is cheaper.
        augment: what the discriminator sees is augmented by, with commas between: color,
            translation, cutout (DiffAugment, for few images); none as published.
        r1: weight γ of the gradient penalty on real images, γ/2 · E‖∇D‖²; 0 as published.
        r1_every: steps between two uses of it, each of which then counts that many times.
        lecam: weight of LeCam's penalty, for few images; 0 for none, as published.
        batch_size: real images a discriminator step, over all processes.
        lr: Adam's learning rate.
        beta1: Adam's decay of the mean gradient.
        beta2: Adam's decay of the mean squared gradient.
        n_dis: discriminator steps per generator step.
        ema: decay of the generator's moving average, which is then sampled; 0 for none.
        image_size: 32, 48, 64 or 128; default: 32 for digits, else the images' own.
        sample_every: steps between two grids of samples, drawn from the same noise.
        score_every: steps between two scores; default: none while it trains.
        best_by: the score that chooses checkpoints/best, any of those that ``mhe-gan score`` knows.
        stop_on_collapse: end the run where its samples look alike at three evaluations in a row,
            if they never looked otherwise, after 1,000 steps at the earliest; they are looked at
            with each score, or without scores each grid.
    """

    movable_weights: ClassVar[frozenset[str]] = frozenset({"feature_extractor", "weights"})

    model: str = "dcgan"
    conditional: bool = False
    channels: Literal[1, 3] = 3
    spectral_norm: bool = True
    loss: str = "non_saturating"
    regularizer: str = "mhe-core:mhe"
    hidden_weight: float | None = None  # type: ignore[assignment]  # until it is looked up
    output_weight: float = 0.0
    generator_weight: float = 0.0
    penalty_every: int = 1
    augment: str = "none"
    r1: float = 0.0
    r1_every: int = 16
    lecam: float = 0.0
    batch_size: int = 64
    lr: float = 1e-4
    beta1: float = 0.5
    beta2: float = 0.999
    n_dis: int = 1
    ema: float = 0.999
    checkpoint_every: int = 1000
    image_size: int | None = None
    sample_every: int = 1000
    score_every: int | None = None
    best_by: str = "inception_score"
    stop_on_collapse: bool = False

    def __post_init__(self) -> None:
        """Fill in what was published, then check."""
        if self.hidden_weight is None:
            self.hidden_weight = PUBLISHED_WEIGHT[self.spectral_norm]
        if self.steps is None and self.epochs is None:
            self.steps = PUBLISHED_STEPS
        TrainingConfig.__post_init__(self)
        ScoreConfig.__post_init__(self)
        for name in ("n_dis", "penalty_every", "r1_every", "sample_every", "score_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"expected --{name.replace('_', '-')} at least 1, got {value}")
        for name in ("ema", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                got = getattr(self, name)
                raise UserError(f"expected --{name} at least 0 and below 1, got {got}")
        for name in ("generator_weight", "r1", "lecam"):
            if getattr(self, name) < 0:
                got = getattr(self, name)
                raise UserError(f"expected --{name.replace('_', '-')} at least 0, got {got}")
        if self.generator_weight and self.regularizer == "none":
            raise UserError(
                "expected a --regularizer with --generator-weight, which is the weight of the same "
                "one on the generator, got none"
            )
        find_networks(self.model)
        find_loss(self.loss)
        if unknown := sorted(set(self.augmentations()) - set(AUGMENTATIONS)):
            raise UserError(
                f"expected --augment of {', '.join(AUGMENTATIONS)} or none, got "
                f"{', '.join(unknown)}"
            )

    @property
    def evaluate_every(self) -> int | None:
        """Steps between two evaluations, of scores and of how alike samples are; None for none."""
        alarm = self.sample_every if self.stop_on_collapse else None
        return alarm if self.score_every is None else self.score_every

    def total_steps(self, num_images: int) -> int:
        """Generator steps: --steps, or --epochs of the discriminator's images."""
        total = super().total_steps(num_images)
        return total if self.steps is not None else max(1, total // self.n_dis)

    def augmentations(self) -> list[str]:
        """Their names, in the order in which they are applied."""
        return [] if self.augment == "none" else comma_separated(self.augment)

    def energy_options(self) -> dict[str, Any]:
        """The regularizer's hyperparameters: s = 0, as published, unless another is given."""
        published = {"s": 0} if own_name(self.regularizer) in ("mhe", "half_mhe") else {}
        return {**published, **self.regularizer_options}
