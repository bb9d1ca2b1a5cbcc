"""The settings of a classification run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mhe_core.errors import UserError
from mhe_core.training.config import TrainingConfig
from mhe_core.training.naming import own_name

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
        image_size: height and width of the images; default: 32 for digits, else the images' own.
        flip: mirror training images at random; default: yes, except for digits.
        validation_fraction: part of the training images held out to choose checkpoints/best.
        recipe: stable, or released with every detail of the published program.
        loss: cross_entropy, or released, the published program's.
        label_smoothing: probability spread over all classes.
        mixup: alpha of mixup; 0 for none.
        optimizer: a timm optimizer; momentum is SGD without Nesterov's correction.
        momentum: of the optimizer.
        weight_decay: on all parameters.
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

    model: str = "vgg9"
    lr: float | None = None  # type: ignore[assignment]  # until the recipe has set it
    image_size: int | None = None
    flip: bool | None = None
    validation_fraction: float = 0.0
    recipe: Literal["stable", "released"] = "stable"
    loss: Literal["cross_entropy", "released"] | None = None
    label_smoothing: float | None = None
    mixup: float = 0.0
    optimizer: str = "momentum"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str | None = None
    milestones: list[int] | None = None
    warmup: float | None = None
    bn_momentum: float | None = None
    ema: float = 0.0
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
        super().__post_init__()
        for name in ("validation_fraction", "label_smoothing", "warmup", "ema"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                flag = name.replace("_", "-")
                raise UserError(f"expected --{flag} at least 0 and below 1, got {value}")
        if self.mixup and self.loss == "released":
            raise UserError("--mixup goes with --loss cross_entropy, got --loss released")
        if not 1 <= self.accumulate <= self.batch_size:
            raise UserError(
                f"expected --accumulate from 1 to the batch size {self.batch_size}, "
                f"got {self.accumulate}"
            )

    def energy_options(self) -> dict[str, Any]:
        """Options of an energy, for every layer: only those that were asked for."""
        options: dict[str, Any] = {}
        if self.power_s is not None:
            options["s"] = float(self.power_s.lstrip("a"))
            options["distance"] = "angular" if self.power_s.startswith("a") else "euclidean"
        if self.convention not in (None, "paper"):
            options["convention"] = self.convention
        return options

    def hidden_options(self) -> dict[str, Any]:
        """Options of the hidden layers' regularizer."""
        named = HYPERPARAMETERS.get(own_name(self.regularizer) or "", ())
        flags = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        return {**self.energy_options(), **flags, **self.regularizer_options}

    def check_hyperparameters(self) -> None:
        """Raise a ValueError for a hyperparameter's flag that the regularizer does not have."""
        known = HYPERPARAMETERS.get(own_name(self.regularizer) or "", ())
        for name in {name for names in HYPERPARAMETERS.values() for name in names}:
            if getattr(self, name) is not None and name not in known:
                flag = name.replace("_", "-")
                raise UserError(f"--regularizer {self.regularizer} has no --{flag}")
