"""Backbones: from a face image to an embedding.

SphereFace's networks, insightface's with the names of their published weights, facenet-pytorch's
InceptionResnetV1, and any timm model.
"""

from __future__ import annotations

import difflib

import timm
from mhe_core.errors import UserError
from torch import nn

from sphereface_plus.backbones.iresnet import IRESNETS, IResNet
from sphereface_plus.backbones.mobilefacenet import MOBILEFACENETS, MobileFaceNet
from sphereface_plus.backbones.sfnet import SFNETS, SFNet

__all__ = ["IResNet", "MobileFaceNet", "SFNet", "create_backbone", "last_layer"]

INCEPTION = "inception_resnet_v1"


def create_backbone(
    name: str, dim: int = 512, image_size: tuple[int, int] = (112, 96), width: float = 1.0
) -> nn.Module:
    """A network from images [B, 3, height, width] to embeddings [B, dim].

    Args:
        name: ``sfnet4``, ``sfnet10``, ``sfnet20``, ``sfnet36``, ``sfnet64``, each with ``_bn`` for
            batch norm; ``iresnet18``, 34, 50, 100, 200, ``mobilefacenet``, ``mobilefacenet_large``,
            insightface's; ``inception_resnet_v1``, facenet-pytorch's; or the name of a timm model,
            whose classifier becomes the embedding.
        dim: dimension of the embedding.
        image_size: height and width of the images.
        width: factor on the number of an SFNet's channels; the others have no such factor.

    Raises:
        ValueError: if there is no such network, or it has no width.

    Example:
        >>> type(create_backbone("sfnet20_bn", width=0.5)).__name__
        'SFNet'
    """
    if name in SFNETS:
        depth, batch_norm = SFNETS[name]
        return SFNet(depth, dim, image_size, width, batch_norm)
    ours = [*SFNETS, *IRESNETS, *MOBILEFACENETS, INCEPTION]
    if name not in ours and not timm.is_model(name):
        near = difflib.get_close_matches(name, [*ours, *timm.list_models()]) or list(SFNETS)
        raise UserError(
            f"expected a backbone such as {', '.join(near)}, or a timm model, got {name!r}"
        )
    if width != 1:
        raise UserError(f"expected width 1 for {name}, which has no width factor, got {width}")
    if name in IRESNETS:
        return IResNet(IRESNETS[name], dim, image_size)
    if name in MOBILEFACENETS:
        return MobileFaceNet(*MOBILEFACENETS[name], dim, image_size)
    if name == INCEPTION:
        from facenet_pytorch import InceptionResnetV1

        # As a classifier of dim classes: its own embedding is normalised, ours must not be.
        return InceptionResnetV1(classify=True, num_classes=dim)
    options = {"img_size": image_size} if takes_image_size(name) else {}
    return timm.create_model(name, num_classes=dim, **options)


def takes_image_size(name: str) -> bool:
    """Whether a timm model is built for one image size, as vision transformers are."""
    config = timm.get_pretrained_cfg(name)
    return bool(config and config.fixed_input_size)


def last_layer(name: str) -> str | None:
    """The layer that is a classifier in published weights and the embedding here, if there is one.

    Example:
        >>> last_layer("resnet18"), last_layer("iresnet18")
        ('fc', None)
    """
    if name == INCEPTION:
        return "logits"
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return str(config.classifier) if config else None
