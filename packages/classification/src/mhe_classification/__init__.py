"""Image classification with minimum hyperspherical energy."""

from mhe_classification import models as models  # registers vgg9 and the CIFAR ResNets with timm
from mhe_classification.classifier import Classifier, load

__all__ = ["Classifier", "load", "models"]
