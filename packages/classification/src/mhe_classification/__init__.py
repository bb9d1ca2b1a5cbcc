"""Image classification with minimum hyperspherical energy."""

from mhe_classification import models as models  # registers vgg9 and the CIFAR ResNets with timm

__all__ = ["models"]
