"""A trained classifier, ready for use: its network, its classes and how it wants its images."""

from __future__ import annotations

from pathlib import Path

import torch
from mhe_core.training.checkpoint import load_checkpoint
from mhe_core.training.images import ImageFile, decode
from mhe_core.training.loop import restore_state
from mhe_core.training.processes import resolve_device
from mhe_core.training.run import saved_config
from torch import Tensor, nn

from mhe_classification.config import ClassificationConfig
from mhe_classification.models import build_model
from mhe_classification.preprocessing import PUBLISHED, Normalize

__all__ = ["Classifier", "load"]


class Classifier(nn.Module):
    """From pixels to logits: a network behind the normalization that it was trained with.

    Attributes:
        network: from normalized images [B, 3, image_size, image_size] to logits [B, C].
        normalize: from uint8 images to normalized ones.
        classes: names of the C classes.
        image_size: height and width of the images in pixels.
        settings: of the run that trained it.
    """

    def __init__(
        self,
        network: nn.Module,
        normalize: Normalize,
        classes: tuple[str, ...],
        image_size: int,
        settings: ClassificationConfig,
    ) -> None:
        super().__init__()
        self.network = network
        self.normalize = normalize
        self.classes = classes
        self.image_size = image_size
        self.settings = settings

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [B, C] of uint8 images [B, 3, image_size, image_size]."""
        return self.network(self.normalize(pixels))

    def read(self, file: ImageFile) -> Tensor:
        """An image file as uint8 [3, image_size, image_size], resized as in training.

        Raises:
            DataError: if it cannot be read; names it.
        """
        return decode(file, (self.image_size, self.image_size))

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Probabilities [B, C] of the classes, on the CPU."""
        return self(pixels.to(self.normalize.mean.device)).float().softmax(-1).cpu()


def load(run: Path | str, checkpoint: str = "best", device: str = "cpu") -> Classifier:
    """The classifier of a run, in evaluation mode: the moving average's weights, if it has one.

    Args:
        run: the run directory.
        checkpoint: best, last, or another file in its checkpoints.
        device: auto, cpu, cuda, cuda:1, ….

    Raises:
        RunError: if ``run`` is not a run directory.
        CheckpointError: if the checkpoint is damaged or does not fit.

    Example::

        classifier = mhe_classification.load("runs/first")
        pixels = classifier.read(pathlib.Path("seven.png"))[None]
        probabilities = classifier.probabilities(pixels)[0]
        print(classifier.classes[probabilities.argmax()], float(probabilities.max()))
    """
    settings = saved_config(ClassificationConfig, Path(run))
    content = load_checkpoint(Path(run) / "checkpoints" / checkpoint)
    facts, state = content["facts"], content["state"]
    classes, image_size = tuple(facts["classes"]), facts["image_size"]
    network = build_model(
        settings.model, len(classes), image_size, settings.width, **settings.network_options()
    )
    weights = {"model": state.get("ema", state["model"])}
    restore_state({"model": network}, weights, f"{run}/checkpoints/{checkpoint}")
    mean, std = facts.get("mean", PUBLISHED[0]), facts.get("std", PUBLISHED[1])
    normalize = Normalize(mean, std, settings.channels_last)
    if settings.channels_last:
        network = network.to(memory_format=torch.channels_last)
    classifier = Classifier(network, normalize, classes, image_size, settings)
    return classifier.to(resolve_device(device)).eval()
