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
from mhe_core.training.batches import whole_set
from mhe_core.training.command import parse, run_command
from mhe_core.training.files import write_atomically
from mhe_core.training.images import ImageSet, load_folder, load_images, with_classes
from mhe_core.training.processes import make_accelerator
from torch import Tensor, nn

from mhe_classification.classifier import Classifier, load

__all__ = ["TestConfig", "energies", "error_rate", "main", "test"]


@dataclass(kw_only=True)
class TestConfig:
    """Test a trained classifier.

    Attributes:
        run: the run directory.
        checkpoint: best, last, or another file in its checkpoints.
        batch_size: images at a time.
        data: other images, in place of the run's own: digits, cifar10, cifar100, a folder with
            ``test/<class>/…``, or one with ``<class>/…``; classes are those trained on, by name.
        data_dir: where cifar10 and cifar100 are; default: where they were in training.
        workers: processes that decode images, where they are not kept in memory.
        device: auto, cpu, cuda, cuda:1, ….
    """

    __test__ = False  # not a test case

    run: Path
    checkpoint: str = "best"
    batch_size: int = 500
    data: str | None = None
    data_dir: Path | None = None
    workers: int = 0
    device: str = "auto"


@torch.no_grad()
def error_rate(
    model: nn.Module, images: ImageSet, accelerator: Accelerator, *, workers: int = 0
) -> float:
    """Fraction of the images that ``model``, given their pixels, puts into a wrong class."""
    per_class = errors_by_class(model, images, accelerator, workers=workers)
    return float(per_class.sum()) / len(images)


@torch.no_grad()
def errors_by_class(
    model: nn.Module,
    images: ImageSet,
    accelerator: Accelerator,
    *,
    batch_size: int = 500,
    workers: int = 0,
) -> Tensor:
    """Number of wrongly classified images of each class, [C], over all processes.

    Args:
        model: from uint8 images to logits; all its parts are left in the mode that they were in.
        images: what to classify.
        accelerator: device and processes.
        batch_size: images at a time.
        workers: processes that decode images, where they are not kept in memory.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    wrong = torch.zeros(len(images.classes), dtype=torch.int64, device=accelerator.device)
    for pixels, labels in whole_set(
        images,
        batch_size,
        workers=workers,
        device=accelerator.device,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
    ):
        with accelerator.autocast():
            predicted = model(pixels).argmax(-1)
        wrong += torch.bincount(labels[predicted != labels], minlength=len(wrong))
    for module, training in modes.items():
        module.training = training
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


def images_to_test(config: TestConfig, classifier: Classifier) -> ImageSet:
    """The images that are asked for, labelled by the classes that the network was trained on.

    Raises:
        DataError: if they cannot be read, or are of classes that it does not know.
    """
    size = (classifier.image_size, classifier.image_size)
    folder = None if config.data is None else Path(config.data)
    if folder is not None and folder.is_dir():
        images = load_folder(folder / "test" if (folder / "test").is_dir() else folder, size=size)
    else:
        data = config.data or classifier.settings.data
        data_dir = config.data_dir or classifier.settings.data_dir
        images = load_images(data, "test", size=size, data_dir=data_dir)
    return with_classes(images, classifier.classes)


def test(config: TestConfig) -> dict[str, Any]:
    """Error of a trained classifier on test images; test.json has that on the run's own.

    Returns:
        ``test_error`` and ``test_accuracy`` as fractions, ``class_accuracy`` by class, energies.
    """
    classifier = load(config.run, config.checkpoint)
    accelerator = make_accelerator(config.device)
    classifier.to(accelerator.device)
    images = images_to_test(config, classifier)
    wrong = errors_by_class(
        classifier, images, accelerator, batch_size=config.batch_size, workers=config.workers
    ).cpu()
    count = torch.bincount(images.labels, minlength=len(wrong))
    error = int(wrong.sum()) / len(images)
    report = {
        "checkpoint": config.checkpoint,
        "data": config.data or classifier.settings.data,
        "images": len(images),
        "test_error": error,
        "test_accuracy": 1 - error,
        "class_accuracy": {
            name: 1 - int(w) / int(n)
            for name, w, n in zip(images.classes, wrong, count, strict=True)
            if n
        },
        **energies(classifier.network),
    }
    if config.data is not None:  # the run's own report stands
        return report
    write_atomically(Path(config.run) / "test.json", json.dumps(report, indent=2) + "\n")
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(TestConfig, arguments, "mhe-classification test", positional=("run",))
    print(json.dumps(test(config), indent=2))


if __name__ == "__main__":
    sys.exit(run_command("mhe-classification test", main, sys.argv[1:]))
