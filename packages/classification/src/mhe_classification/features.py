"""A trained classifier as an extractor of features and logits, for packages that score images.

Offered through the entry-point group ``mhe_gan.feature_extractors``: applications do not import
each other.
"""

from __future__ import annotations

from pathlib import Path

from mhe_core.network import find_output_layers
from mhe_core.training.augment import normalize
from mhe_core.training.checkpoint import load_checkpoint
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mhe_classification.test import load_classifier

__all__ = ["FeatureExtractor", "load_feature_extractor"]


class FeatureExtractor(nn.Module):
    """uint8 images [B, 3, h, w] to what the output layer is given, [B, d], and logits [B, C].

    Args:
        model: a classifier of normalized images; of several heads, the first one's features count.
        image_size: height and width of its images, to which others are resized.
    """

    def __init__(self, model: nn.Module, image_size: int) -> None:
        super().__init__()
        self.model = model
        self.image_size = image_size
        self.features: Tensor
        output = model.get_submodule(find_output_layers(model)[0])
        output.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0].flatten(1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits."""
        images = normalize(pixels)
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = interpolate(images, size, mode="bilinear", antialias=True)
        logits = self.model(images)
        return self.features, logits


def load_feature_extractor(run: Path) -> FeatureExtractor:
    """The classifier of a run directory, in evaluation mode.

    Raises:
        RunError: if ``run`` is not a run directory.
        CheckpointError: if its checkpoint is damaged or does not fit.
    """
    model, _ = load_classifier(run)
    facts = load_checkpoint(Path(run) / "checkpoints" / "best")["facts"]
    return FeatureExtractor(model, facts["image_size"]).eval()
