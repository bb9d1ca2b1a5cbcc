"""VGG-9 of the MHE paper and the CIFAR ResNets, registered with timm.

Sources: Liu et al., *Learning towards Minimum Hyperspherical Energy*, NeurIPS 2018 (VGG-9); He et
al., *Deep Residual Learning for Image Recognition*, CVPR 2016, section 4.2 (ResNet-20, 32, 56).
"""

from __future__ import annotations

from typing import Any

import timm
import torch.nn.functional as F
from mhe_core.errors import UserError, users_request
from timm.models import register_model
from torch import Tensor, nn

__all__ = ["VGG9", "CifarResNet", "build_model", "resnet20", "resnet32", "resnet56", "vgg9"]


class VGG9(nn.Module):
    """Nine 3×3 convolutions in three stages, then one over the whole map, then the classifier.

    Args:
        num_classes: C.
        in_chans: channels of the images.
        img_size: height and width of the images, a multiple of 8.
        width: factor on the published 64, 128, 256 and 256 channels.
        bn_momentum: of the batch norms' running averages; the published one, 0.001, needs
            thousands of steps.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int = 32,
        width: float = 1.0,
        bn_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        if img_size % 8:
            raise UserError(f"vgg9 expects an image size that is a multiple of 8, got {img_size}")
        layers: list[nn.Module] = []
        channels = in_chans
        for stage_width in (64, 128, 256):
            for _ in range(3):
                out = scaled(stage_width, width)
                layers += [
                    nn.Conv2d(channels, out, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out, eps=1e-3, momentum=bn_momentum),
                    nn.ReLU(inplace=True),
                ]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.num_classes = num_classes
        self.num_features = scaled(256, width)
        self.features = nn.Sequential(*layers)
        self.embedding = nn.Conv2d(channels, self.num_features, img_size // 8, bias=False)
        self.classifier = nn.Conv2d(self.num_features, num_classes, 1, bias=False)
        initialize(self)

    def get_classifier(self) -> nn.Module:
        """The output layer, as timm's models name it."""
        return self.classifier

    def forward_features(self, images: Tensor) -> Tensor:
        """The embedding [B, num_features, 1, 1] of images [B, in_chans, img_size, img_size]."""
        return self.embedding(self.features(images))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C]."""
        return self.classifier(self.forward_features(images)).flatten(1)


class _Block(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters (option A of the paper)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride = stride
        self.added = out - channels

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return F.relu(out + shortcut)


class CifarResNet(nn.Module):
    """ResNet for small images: 3×3 stem, three stages of 16, 32 and 64 channels.

    Args:
        blocks: residual blocks a stage; the depth is 6 · blocks + 2.
        num_classes: C.
        in_chans: channels of the images.
        width: factor on the channels.
    """

    def __init__(
        self, blocks: int, num_classes: int = 10, in_chans: int = 3, width: float = 1.0
    ) -> None:
        super().__init__()
        channels = scaled(16, width)
        self.conv = nn.Conv2d(in_chans, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        stages: list[nn.Module] = []
        for stage, stage_width in enumerate((16, 32, 64)):
            for block in range(blocks):
                out = scaled(stage_width, width)
                stages.append(_Block(channels, out, 2 if stage and not block else 1))
                channels = out
        self.num_classes = num_classes
        self.num_features = channels
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, num_classes)
        initialize(self)

    def get_classifier(self) -> nn.Module:
        """The output layer, as timm's models name it."""
        return self.classifier

    def forward_features(self, images: Tensor) -> Tensor:
        """Feature maps [B, num_features, h/4, w/4] of images [B, in_chans, h, w]."""
        return self.stages(F.relu(self.bn(self.conv(images))))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C]."""
        return self.classifier(self.forward_features(images).mean((2, 3)))


def scaled(channels: int, width: float) -> int:
    """A number of channels times the width factor, at least one."""
    return max(1, round(channels * width))


def initialize(model: nn.Module) -> None:
    """Weights N(0, 2/fan_in), biases 0."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@register_model
def vgg9(pretrained: bool = False, **kwargs: Any) -> VGG9:
    """VGG-9 as published, from random weights."""
    return VGG9(**_own(kwargs))


@register_model
def resnet20(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-20 for CIFAR, from random weights."""
    return CifarResNet(3, **_own(kwargs))


@register_model
def resnet32(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-32 for CIFAR, from random weights."""
    return CifarResNet(5, **_own(kwargs))


@register_model
def resnet56(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-56 for CIFAR, from random weights."""
    return CifarResNet(9, **_own(kwargs))


def _own(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without what timm adds for every model."""
    return {k: v for k, v in kwargs.items() if not k.startswith(("pretrained", "cache_dir"))}


OURS = ("vgg9", "resnet20", "resnet32", "resnet56")


def build_model(
    name: str,
    num_classes: int,
    img_size: int,
    width: float = 1.0,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """Any timm model for RGB images of ``img_size`` pixels and ``num_classes`` classes.

    Args:
        name: a timm model name, ours included.
        num_classes: C.
        img_size: height and width of the images.
        width: factor on the channels, for our own models.
        pretrained: with timm's weights but for the output layer, which are downloaded.
        options: further arguments of the model.

    Raises:
        UserError: for an unknown name, a model that does not classify, or a width, an option or
            pretrained weights where the model has none.
        OSError: if the weights cannot be downloaded.
    """
    if not timm.is_model(name):
        near = timm.list_models(f"*{name[:6]}*")[:5]
        raise UserError(f"expected --model as a timm model, got {name!r}; near it: {near}")
    if name in OURS:
        options["width"] = width
    elif width != 1.0:
        raise UserError(f"--width is for {', '.join(OURS)}; {name} has none, got {width}")
    fixed_size = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    if name == "vgg9" or fixed_size:
        options["img_size"] = img_size
    if pretrained and (name in OURS or not timm.is_model_pretrained(name)):
        raise UserError(f"--pretrained: there are no weights of {name}; --init takes a file")
    with users_request(f"--model {name}{_spelled(options)}"):
        model = timm.create_model(name, pretrained, num_classes=num_classes, **options)
    if (got := getattr(model, "num_classes", num_classes)) != num_classes:  # timm's encoders
        raise UserError(
            f"expected --model as one that classifies, got {name}, which has no output layer of "
            f"{num_classes} classes (its num_classes is {got})"
        )
    return model


def _spelled(options: dict[str, Any]) -> str:
    return f" with {', '.join(f'{k}={v!r}' for k, v in options.items())}" if options else ""
