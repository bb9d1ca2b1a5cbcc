"""``mhe-classification test``: the error of a trained classifier, and its layers' energies."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from mhe_core import NetworkRegularizer
from mhe_core.diagnostics.bounds import lower_bound
from mhe_core.network import weight_at
from mhe_core.training.augment import normalize
from mhe_core.training.batches import whole_set
from mhe_core.training.checkpoint import load_checkpoint
from mhe_core.training.command import parse, run_command
from mhe_core.training.files import write_atomically
from mhe_core.training.images import ImageSet
from mhe_core.training.loop import restore_state
from mhe_core.training.processes import make_accelerator
from mhe_core.training.run import saved_config
from torch import Tensor, nn

from mhe_classification.config import ClassificationConfig
from mhe_classification.data import load_splits
from mhe_classification.models import build_model

__all__ = ["TestConfig", "energies", "error_rate", "load_classifier", "main", "test"]


@dataclass(kw_only=True)
class TestConfig:
    """Test a trained classifier.

    Attributes:
        run: the run directory.
        checkpoint: best, last, or another file in its checkpoints.
        batch_size: images at a time.
        device: auto, cpu, cuda, cuda:1, ….
    """

    __test__ = False  # not a test case

    run: Path
    checkpoint: str = "best"
    batch_size: int = 500
    device: str = "auto"


def load_classifier(run: Path, checkpoint: str = "best") -> tuple[nn.Module, ClassificationConfig]:
    """A trained classifier of normalized images, in evaluation mode, and its run's settings.

    Raises:
        RunError: if ``run`` is not a run directory.
        CheckpointError: if the checkpoint is damaged or does not fit.
    """
    config = saved_config(ClassificationConfig, run)
    content = load_checkpoint(Path(run) / "checkpoints" / checkpoint)
    facts, state = content["facts"], content["state"]
    model = build_model(config.model, len(facts["classes"]), facts["image_size"], config.width)
    weights = {"model": state.get("ema", state["model"])}
    restore_state({"model": model}, weights, f"{run}/checkpoints/{checkpoint}")
    return model.eval(), config


@torch.no_grad()
def error_rate(model: nn.Module, images: ImageSet, accelerator: Accelerator) -> float:
    """Fraction of the images that ``model`` puts into a wrong class; its mode stays as it was."""
    per_class = errors_by_class(model, images, accelerator)
    return float(per_class.sum()) / len(images)


@torch.no_grad()
def errors_by_class(
    model: nn.Module, images: ImageSet, accelerator: Accelerator, batch_size: int = 500
) -> Tensor:
    """Number of wrongly classified images of each class, [C], over all processes."""
    training = model.training
    model.eval()
    wrong = torch.zeros(len(images.classes), dtype=torch.int64, device=accelerator.device)
    for pixels, labels in whole_set(
        images,
        batch_size,
        device=accelerator.device,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
    ):
        with accelerator.autocast():
            predicted = model(normalize(pixels)).argmax(-1)
        wrong += torch.bincount(labels[predicted != labels], minlength=len(wrong))
    model.train(training)
    return accelerator.reduce(wrong, reduction="sum")


@torch.no_grad()
def energies(model: nn.Module) -> dict[str, float]:
    """What every run reports, whatever it was trained with: s = 2, chord, paper convention.

    Returns:
        ``hidden_energy``, the sum of the hidden layers' half-space energies, ``output_energy``, the
        output layer's full-space energy, and how far each is above what no directions can go below.
    """
    figures = {}
    for name, hidden, output in (
        ("hidden", "mhe-core:half_mhe", None),
        ("output", None, "mhe-core:mhe"),
    ):
        terms = NetworkRegularizer(model, hidden, output).terms()
        energy = sum(float(term) for term in terms.values())
        sizes = [weight_at(model, layer).neurons().shape[-2:] for layer in terms]
        floor = sum(lower_bound(N, d, half_space=hidden is not None) for N, d in sizes)
        figures[f"{name}_energy"] = energy
        figures[f"{name}_above_floor"] = energy - floor
    return figures


def test(config: TestConfig) -> dict[str, Any]:
    """Error of a trained classifier on the test images of its data, also written to test.json.

    Returns:
        ``test_error`` and ``test_accuracy`` as fractions, ``class_accuracy`` by class, energies.
    """
    model, settings = load_classifier(config.run, config.checkpoint)
    accelerator = make_accelerator(config.device)
    model.to(accelerator.device)
    images = load_splits(settings).test
    wrong = errors_by_class(model, images, accelerator, config.batch_size).cpu()
    count = torch.bincount(images.labels, minlength=len(wrong))
    error = int(wrong.sum()) / len(images)
    report = {
        "checkpoint": config.checkpoint,
        "images": len(images),
        "test_error": error,
        "test_accuracy": 1 - error,
        "class_accuracy": {
            name: 1 - int(w) / int(n)
            for name, w, n in zip(images.classes, wrong, count, strict=True)
            if n
        },
        **energies(model),
    }
    write_atomically(Path(config.run) / "test.json", json.dumps(report, indent=2) + "\n")
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(TestConfig, arguments, "mhe-classification test", positional=("run",))
    print(json.dumps(test(config), indent=2))


if __name__ == "__main__":
    sys.exit(run_command("mhe-classification test", main, sys.argv[1:]))
