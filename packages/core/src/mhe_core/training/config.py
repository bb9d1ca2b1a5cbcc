"""The flags that the three train commands share, with the same meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mhe_core.errors import UserError

__all__ = ["TrainingConfig"]


@dataclass(kw_only=True)
class TrainingConfig:
    """Settings of one training run.

    Attributes:
        output: the run directory.
        data: digits, cifar10, cifar100, or a folder of images.
        data_dir: where the downloaded data sets are.
        download: download cifar10 or cifar100 into --data-dir.
        model: name of the network.
        width: factor on the network's number of channels.
        regularizer: a registered regularizer, or none.
        regularizer_options: its own hyperparameters, as KEY=VALUE ….
        rules: settings of single layers by pattern, the first that fits: {"*.attn.*": {"weight":
            0.1, "regularizer": "mhe", "s": 1}}; "regularizer": null leaves them out.
        hidden_weight: weight of the hidden layers' energies.
        output_weight: weight of the output layer's energy.
        steps: training steps, in place of --epochs.
        epochs: passes over the training images, in place of --steps.
        batch_size: images a step, over all processes and accumulated parts.
        lr: highest learning rate.
        clip_grad: norm to which the gradients of a network are scaled down before a step; 0 for
            no bound.
        seed: of the initial weights, the order of images and everything else that is random.
        log_every: steps between two records in metrics.jsonl.
        checkpoint_every: steps between two checkpoints.
        tracker: none, or programs that get every record, the settings and pictures, with commas
            between: tensorboard, wandb, mlflow and what else accelerate knows.
        workers: processes that decode images, where they are not kept in memory.
        device: auto, cpu, cuda, cuda:1, ….
        amp: mixed precision.
        compile: let torch.compile make the training steps faster; needs a C++ compiler, or Triton
            on a GPU, and minutes before the first step.
        resume: continue the run in --output, to the bit, or start it if there is none; a complete
            one goes on with more --steps or --epochs than it had.
        extended_at: steps at which the run was complete, and was given more; written by the run.
    """

    default_epochs: ClassVar[int] = 30
    # Files and folders that may have moved when a run is continued: what they hold is compared.
    movable: ClassVar[frozenset[str]] = frozenset({"data"})
    # The same of weights, in files or in run directories.
    movable_weights: ClassVar[frozenset[str]] = frozenset()

    output: Path
    data: str = "digits"
    data_dir: Path = Path("data")
    download: bool = False
    model: str = ""
    width: float = 1.0
    regularizer: str = "none"
    regularizer_options: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)
    hidden_weight: float = 1.0
    output_weight: float = 10.0
    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 128
    lr: float = 0.1
    clip_grad: float = 0.0
    seed: int = 0
    log_every: int = 100
    checkpoint_every: int = 500
    tracker: str = "none"
    workers: int = 0
    device: str = "auto"
    amp: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    resume: bool = False
    extended_at: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Set the number of epochs where no length is given; a UserError for a bad setting."""
        if self.steps is None and self.epochs is None:
            self.epochs = self.default_epochs
        for name in ("steps", "epochs", "batch_size", "log_every", "checkpoint_every", "width"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"expected {flag(name)} above 0, got {value}")
        for name in ("hidden_weight", "output_weight", "workers", "seed", "lr", "clip_grad"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"expected {flag(name)} at least 0, got {value}")
        if self.steps is not None and self.epochs is not None:
            raise UserError(
                f"expected --steps or --epochs, got both ({self.steps} and {self.epochs})"
            )

    def total_steps(self, num_images: int) -> int:
        """Training steps for ``num_images`` images: --steps, or --epochs of full batches."""
        if self.batch_size > num_images:
            raise UserError(
                f"expected --batch-size at most the {num_images} training images, "
                f"got {self.batch_size}"
            )
        if self.steps is not None:
            return self.steps
        return (self.epochs or self.default_epochs) * (num_images // self.batch_size)


def flag(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")
