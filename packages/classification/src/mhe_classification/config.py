"""The settings of a classification run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mhe_core.errors import UserError
from mhe_core.registry import find_regularizer, hyperparameters_of
from mhe_core.training.config import TrainingConfig
from mhe_core.training.naming import own_name
from mhe_core.training.run import read_config

from mhe_classification.recipes import recipe_defaults

__all__ = ["ClassificationConfig"]

# The hyperparameters of core's regularizers that have a flag of their own.
HYPERPARAMETERS = {
    "comhe_random": ("projection_dim", "num_projections", "redraw_interval"),
    "comhe_angle": ("projection_dim", "inner_steps"),
    "comhe_adversarial": ("projection_dim", "inner_steps"),
    "comhe_group": ("num_groups", "group_dim"),
}


@dataclass(kw_only=True)
class ClassificationConfig(TrainingConfig):
    """Train a classifier, with or without minimum hyperspherical energy.

    Settings without a default are set by the recipe.

    Attributes:
        model: a timm model; vgg9, resnet20, resnet32 and resnet56 for small images are ours.
        lr: highest learning rate.
        init: weights to start from, of a run directory or of a file (safetensors, or torch.save's);
            an output layer of other classes begins at random.
        pretrained: start from timm's weights of the model, which are downloaded.
        model_options: further arguments of the timm model, as KEY=VALUE ….
        drop_path: probability with which timm's models skip the last residual branch; earlier ones
            less.
        normalization: of the pixels, published, (x - 127.5) / 128, or that of the timm model's
            weights; default: model with --pretrained, the run's with --init RUN, else published.
        grad_checkpointing: compute activations twice to save memory, where the model can; the
            running averages of batch norms then move twice a step.
        channels_last: keep images and weights in that memory format, which GPUs prefer.
        image_size: height and width of the images; default: 32 for digits, else the images' own.
        flip: mirror training images at random; default: yes, except for digits.
        validation_fraction: part of the training images held out to choose checkpoints/best.
        recipe: stable; fast, for small networks and few epochs; or released with every detail of
            the published program.
        loss: cross_entropy, or released, the published program's.
        label_smoothing: probability spread over all classes.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of cutmix, which takes turns with mixup; 0 for none.
        random_erasing: probability with which noise covers a rectangle of a training image.
        optimizer: a timm optimizer; momentum is SGD without Nesterov's correction.
        momentum: of the optimizer.
        weight_decay: on all parameters, or, with --no-decay-norm-bias, on weights alone.
        decay_norm_bias: whether norms and biases decay as well, as published.
        schedule: a timm schedule, such as cosine or multistep.
        milestones: steps at which multistep divides the learning rate by 10.
        warmup: fraction of the steps in which the learning rate rises to --lr.
        bn_momentum: of vgg9's batch norms.
        ema: decay of the weights' moving average, which is then evaluated; 0 for none.
        accumulate: parts into which a step's batch is split to save memory.
        eval_every: steps between two evaluations; default: an epoch.
        power_s: the published interface to the energy: s, with a for the angular distance.
        convention: constants of the paper or of the released code.
        output_regularizer: regularizer of the output layer, or none.
        output_options: its own hyperparameters, as KEY=VALUE ….
        projection_dim: of the comhe regularizers.
        num_projections: of comhe_random.
        redraw_interval: of comhe_random, in steps.
        inner_steps: of comhe_angle and comhe_adversarial.
        num_groups: of comhe_group.
        group_dim: of comhe_group.
    """

    movable_weights: ClassVar[frozenset[str]] = frozenset({"init"})

    model: str = "vgg9"
    lr: float | None = None  # type: ignore[assignment]  # until the recipe has set it
    init: Path | None = None
    pretrained: bool = False
    model_options: dict[str, Any] = field(default_factory=dict)
    drop_path: float = 0.0
    normalization: Literal["published", "model"] | None = None
    grad_checkpointing: bool = False
    channels_last: bool = False
    image_size: int | None = None
    flip: bool | None = None
    validation_fraction: float = 0.0
    recipe: Literal["stable", "fast", "released"] = "stable"
    loss: Literal["cross_entropy", "released"] | None = None
    label_smoothing: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    random_erasing: float = 0.0
    optimizer: str | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_norm_bias: bool = True
    schedule: str | None = None
    milestones: list[int] | None = None
    warmup: float | None = None
    bn_momentum: float | None = None
    ema: float | None = None
    accumulate: int = 1
    eval_every: int | None = None
    power_s: Literal["0", "1", "2", "a0", "a1", "a2"] | None = None
    convention: Literal["paper", "released_code"] | None = None
    output_regularizer: str = "mhe-core:mhe"
    output_options: dict[str, Any] = field(default_factory=dict)
    projection_dim: int | None = None
    num_projections: int | None = None
    redraw_interval: int | None = None
    inner_steps: int | None = None
    num_groups: int | None = None
    group_dim: int | None = None

    def __post_init__(self) -> None:
        """Fill in what the recipe sets, then check."""
        own_length = self.steps is not None or self.epochs is not None
        for name, value in recipe_defaults(self.recipe, self.regularizer).items():
            if getattr(self, name) is None and not (own_length and name == "steps"):
                setattr(self, name, value)
        if self.flip is None:
            self.flip = self.data != "digits"
        if self.normalization is None:
            self.normalization = self._usual_normalization()
        super().__post_init__()
        for name in ("validation_fraction", "label_smoothing", "warmup", "ema", "drop_path"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                flag = name.replace("_", "-")
                raise UserError(f"expected --{flag} at least 0 and below 1, got {value}")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise UserError(f"expected --{name} at least 0, got {getattr(self, name)}")
            if getattr(self, name) and self.loss == "released":
                raise UserError(f"--{name} goes with --loss cross_entropy, got --loss released")
        if not 0 <= self.random_erasing <= 1:
            raise UserError(f"expected --random-erasing from 0 to 1, got {self.random_erasing}")
        if self.pretrained and self.init is not None:
            raise UserError(f"expected --pretrained or --init, got both ({self.init})")
        if not 1 <= self.accumulate <= self.batch_size:
            raise UserError(
                f"expected --accumulate from 1 to the batch size {self.batch_size}, "
                f"got {self.accumulate}"
            )

    def _usual_normalization(self) -> Literal["published", "model"]:
        """That with which the weights to start from were trained, if there are such."""
        if self.init is not None and Path(self.init).is_dir():
            return read_config(self.init).get("normalization") or "published"
        return "model" if self.pretrained else "published"

    def network_options(self) -> dict[str, Any]:
        """Arguments of the timm model: only those that were asked for."""
        options: dict[str, Any] = {}
        if self.model == "vgg9" and self.bn_momentum is not None:
            options["bn_momentum"] = self.bn_momentum
        if self.drop_path:
            options["drop_path_rate"] = self.drop_path
        return {**options, **self.model_options}

    def energy_options(self, regularizer: str) -> dict[str, Any]:
        """Options of an energy, for every layer: only those that were asked for.

        The recipe's convention is for regularizers that have one.
        """
        options: dict[str, Any] = {}
        if self.power_s is not None:
            options["s"] = float(self.power_s.lstrip("a"))
            options["distance"] = "angular" if self.power_s.startswith("a") else "euclidean"
        asked_for = self.convention != recipe_defaults(self.recipe, regularizer)["convention"]
        if self.convention not in (None, "paper") and (asked_for or has_convention(regularizer)):
            options["convention"] = self.convention
        return options

    def hidden_options(self) -> dict[str, Any]:
        """Options of the hidden layers' regularizer."""
        named = HYPERPARAMETERS.get(own_name(self.regularizer) or "", ())
        flags = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        return {**self.energy_options(self.regularizer), **flags, **self.regularizer_options}

    def check_hyperparameters(self) -> None:
        """Raise a ValueError for a hyperparameter's flag that the regularizer does not have."""
        known = HYPERPARAMETERS.get(own_name(self.regularizer) or "", ())
        for name in {name for names in HYPERPARAMETERS.values() for name in names}:
            if getattr(self, name) is not None and name not in known:
                flag = name.replace("_", "-")
                raise UserError(f"--regularizer {self.regularizer} has no --{flag}")


def has_convention(regularizer: str) -> bool:
    """Whether it has the constants of the paper and of the released code to choose from."""
    _, factory = find_regularizer(regularizer)
    return "convention" in {parameter.name for parameter in hyperparameters_of(factory)}
