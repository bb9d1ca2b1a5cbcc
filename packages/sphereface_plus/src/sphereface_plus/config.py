"""The settings of a face recognition run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mhe_core.errors import UserError
from mhe_core.training.config import TrainingConfig

from sphereface_plus.augmentation import AUGMENTATIONS
from sphereface_plus.heads.sphereface import MARGINS, Annealing, check_margin

__all__ = ["FaceConfig"]

Variant = Literal["a_softmax", "sphereface_r", "cosface", "arcface", "softmax"]


@dataclass(kw_only=True)
class FaceConfig(TrainingConfig):
    """Train an embedding of faces with an angular margin and, if asked for, MHE.

    Attributes:
        data: a folder of aligned faces, Name/Name_0001.jpg; or digits, where 0 to 6 stand for the
            people to train on and 7 to 9 for unseen ones.
        model: sfnet4, 10, 20, 36, 64, also with _bn; iresnet18, 34, 50, 100, 200; mobilefacenet;
            inception_resnet_v1; or a timm model.
        regularizer: of the class vectors, a registered one, or none.
        output_weight: weight of the class vectors' energy.
        mhe_weight: the same, by its published name.
        hidden_regularizer: of the backbone's layers, weighted by --hidden-weight; or none.
        regularizer_start: the step from which on energies count.
        anchors: energy of all class vectors, of those in the batch with all others, or of those
            that --sample-rate has sampled with each other.
        penalty_every: steps between two uses of the regularizers, each of which then counts that
            many times.
        dim: dimension of the embedding.
        head: the loss over the classes, by name (list_heads): a published one, or an installed
            plug-in's; default: the one of --variant.
        head_options: the head's own, as KEY=VALUE ….
        variant: of the margin: a_softmax, sphereface_r, cosface, arcface, or softmax without one.
        margin: m; default: the head's published one.
        scale: s of the normalised heads; default: the head's published one, 30 for a variant.
        annealing: schedule of a_softmax's lambda, max(minimum, base / (1 + gamma t) ^ power).
        shard_classes: each process holds a part of the class vectors, for very many classes.
        sample_rate: part of the classes that a step's loss is over, the batch's own and others at
            random (PartialFC); 1: all.
        init: a run whose weights to start from, such as one without MHE, or a file with published
            ones of the backbone; with other people or another head, a run's class vectors are not
            taken over, and lambda starts anew.
        image_size: height x width; default: the images' own.
        flip: mirror training images at random; default: yes, except for digits.
        crop: probability that a training image is black but for a random rectangle.
        colour: probability that its brightness, contrast and saturation change.
        low_resolution: probability that it is shrunk and enlarged again.
        erasing: probability that a rectangle becomes noise.
        validation_people: people held out of training to choose checkpoints/best.
        test_data: a folder of other people's aligned faces, on which to verify on the way.
        pairs: LFW's pairs.txt, or a file of its format, of --test-data.
        optimizer: a timm optimizer; momentum is SGD without Nesterov's correction.
        lr: highest learning rate; default: the network's, 0.02 for an SFNet without batch norm,
            0.1 for others.
        momentum: of the optimizer.
        weight_decay: on all parameters.
        milestones: steps at which the learning rate is divided by 10; default: a cosine.
        warmup: fraction of the steps in which the learning rate rises to --lr; default: the
            network's, 0.1 for an SFNet without batch norm, 0 for others.
        eval_every: steps between two evaluations; default: a tenth of all.
    """

    default_epochs: ClassVar[int] = 20
    movable: ClassVar[frozenset[str]] = frozenset({"data", "test_data", "pairs"})
    movable_weights: ClassVar[frozenset[str]] = frozenset({"init"})

    model: str = "sfnet20"
    output_weight: float = 1.0
    mhe_weight: float | None = None
    hidden_regularizer: str = "none"
    regularizer_start: int = 0
    anchors: Literal["all", "batch", "sampled"] = "all"
    penalty_every: int = 1
    dim: int = 512
    head: str | None = None
    head_options: dict[str, Any] = field(default_factory=dict)
    variant: Variant = "a_softmax"
    margin: float | None = None
    scale: float | None = None
    annealing: Annealing = field(default_factory=Annealing)
    shard_classes: bool = False
    sample_rate: float = 1.0
    init: Path | None = None
    image_size: str | None = None
    flip: bool | None = None
    crop: float = 0.0
    colour: float = 0.0
    low_resolution: float = 0.0
    erasing: float = 0.0
    validation_people: int = 0
    test_data: Path | None = None
    pairs: Path | None = None
    optimizer: str = "momentum"
    momentum: float = 0.9
    lr: float | None = None  # type: ignore[assignment]  # until the network has set it
    weight_decay: float = 5e-4
    milestones: list[int] | None = None
    warmup: float | None = None
    eval_every: int | None = None

    def __post_init__(self) -> None:
        """Fill in what depends on other settings, then check."""
        self.lr, self.warmup = (
            own if given is None else given
            for given, own in zip((self.lr, self.warmup), first_steps(self.model), strict=True)
        )
        super().__post_init__()
        if isinstance(self.annealing, dict):  # from config.yaml
            self.annealing = Annealing(**self.annealing)
        self._settle_head()
        if self.mhe_weight is not None:
            if self.mhe_weight < 0:
                raise UserError(f"expected --mhe-weight at least 0, got {self.mhe_weight}")
            self.output_weight = self.mhe_weight
        if self.flip is None:
            self.flip = self.data != "digits"
        for name in ("dim", "eval_every", "penalty_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"expected --{name.replace('_', '-')} above 0, got {value}")
        for name, chance in self.augmentations().items():
            if not 0 <= chance <= 1:
                raise UserError(
                    f"expected --{name.replace('_', '-')} as a probability, got {chance}"
                )
        if self.warmup is None or not 0 <= self.warmup < 1:
            raise UserError(f"expected --warmup at least 0 and below 1, got {self.warmup}")
        if not 0 < self.sample_rate <= 1:
            raise UserError(f"expected --sample-rate above 0 and at most 1, got {self.sample_rate}")
        if self.anchors == "sampled" and self.sample_rate == 1:
            raise UserError("expected --sample-rate below 1 with --anchors sampled, got 1")
        if self.shard_classes and self.amp == "fp16":
            raise UserError("--shard-classes goes with --amp no or bf16, got fp16")
        if self.shard_classes and self.clip_grad:
            raise UserError(f"--shard-classes goes without --clip-grad, got {self.clip_grad}")
        if (self.test_data is None) != (self.pairs is None):
            raise UserError("expected --test-data and --pairs together, got one of them")
        self.size  # noqa: B018  a malformed --image-size is named here

    @property
    def size(self) -> tuple[int, int] | None:
        """--image-size as height and width."""
        if self.image_size is None:
            return None
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", self.image_size)
        if match is None:
            raise UserError(f"expected --image-size such as 112x96, got {self.image_size!r}")
        return int(match[1]), int(match[2])

    def augmentations(self) -> dict[str, float]:
        """Probability of each augmentation."""
        return {name: getattr(self, name) for name in AUGMENTATIONS}

    def _settle_head(self) -> None:
        """Today's variants are heads, too, which have margin, scale and annealing by flags."""
        if self.head in MARGINS and self.head != "sphereface_r":
            self.variant, self.head = self.head, None  # type: ignore[assignment]  # one of them
        if self.head is None:
            self.margin = check_margin(self.margin, self.variant)
            self.scale = 30.0 if self.scale is None else self.scale
        elif self.shard_classes:
            raise UserError(f"--shard-classes goes with --variant, got --head {self.head}")

    def all_head_options(self) -> dict[str, Any]:
        """What the head is made with: its flags, and --head-options."""
        if self.head is None:
            own: dict[str, Any] = {"variant": self.variant, "annealing": self.annealing}
        else:
            own = {}
        flags = {"m": self.margin, "scale": self.scale}
        given = {key: value for key, value in flags.items() if value is not None}
        return {**own, **given, **self.head_options}


def first_steps(model: str) -> tuple[float, float]:
    """A learning rate at which a network trains from its initial weights, and the warm-up for it.

    Without batch norm nothing keeps the embeddings' scale: at 0.1, the published rate, which was
    for 10,575 people, an SFNet's loss on a few people is not finite after some ten steps.
    """
    return (0.02, 0.1) if re.fullmatch(r"sfnet\d+", model) else (0.1, 0.0)
