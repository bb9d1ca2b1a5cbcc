"""A trained classifier as an extractor of features and logits, for packages that score images.

Offered through the entry-point group ``mhe_gan.feature_extractors``: applications do not import
each other.
"""

from __future__ import annotations

from pathlib import Path

from mhe_core.network import find_output_layers
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mhe_classification.classifier import Classifier, load

__all__ = ["FeatureExtractor", "load_feature_extractor"]


class FeatureExtractor(nn.Module):
    """uint8 images [B, 3, h, w] to what the output layer is given, [B, d], and logits [B, C].

    Args:
        classifier: to whose image size others are resized; of several heads, the first one's
            features count.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.features: Tensor
        network = classifier.network
        output = network.get_submodule(find_output_layers(network)[0])
        output.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0].flatten(1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits."""
        images = self.classifier.normalize(pixels)
        size = (self.classifier.image_size,) * 2
        if images.shape[-2:] != size:
            images = interpolate(images, size, mode="bilinear", antialias=True)
        logits = self.classifier.network(images)
        return self.features, logits


def load_feature_extractor(run: Path) -> FeatureExtractor:
    """The classifier of a run directory, in evaluation mode.

    Raises:
        RunError: if ``run`` is not a run directory.
        CheckpointError: if its checkpoint is damaged or does not fit.
    """
    return FeatureExtractor(load(run)).eval()
