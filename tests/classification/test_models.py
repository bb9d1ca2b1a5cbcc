"""The networks: sizes as published, registered with timm."""

import mhe_classification  # noqa: F401  registers the models
import pytest
import timm
import torch
from mhe_classification.models import build_model
from mhe_core import NetworkRegularizer
from torch import nn


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_vgg9_has_the_published_layers():
    model = timm.create_model("vgg9", num_classes=100)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64] * 3 + [128] * 3 + [256] * 4 + [100]
    assert [m.kernel_size[0] for m in convolutions] == [3] * 9 + [4, 1]
    assert all(m.bias is None for m in convolutions)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 9
    assert norms[0].eps == 1e-3
    assert model.get_classifier() is convolutions[-1]
    weights = torch.cat(
        [m.weight.detach().flatten() * (m.weight[0].numel() / 2) ** 0.5 for m in convolutions]
    )
    assert weights.std() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("name", "count"), [("resnet20", 0.27e6), ("resnet32", 0.46e6), ("resnet56", 0.85e6)]
)
def test_resnets_have_the_papers_number_of_parameters(name, count):
    # He et al. 2016, table 6, to two digits.
    assert parameters(timm.create_model(name, num_classes=10)) == pytest.approx(count, rel=0.02)


@pytest.mark.parametrize("name", ["vgg9", "resnet20", "resnet18", "vit_tiny_patch16_224"])
def test_any_model_fits_small_images_and_learns(name):
    model = build_model(name, 7, 32)
    logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    penalty = NetworkRegularizer(model)()
    (logits.sum() + penalty).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("size", [8, 24, 40])
def test_vgg9_takes_other_sizes(size):
    assert build_model("vgg9", 3, size, 0.125)(torch.randn(2, 3, size, size)).shape == (2, 3)


def test_width_scales_channels():
    model = build_model("vgg9", 10, 32, 0.25)
    assert [m.out_channels for m in model.features if isinstance(m, nn.Conv2d)][::3] == [16, 32, 64]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg99", {}, "expected --model as a timm model, got 'vgg99'"),
        ("resnet18", {"width": 0.5}, "--width"),
        ("vgg9", {"img_size": 30}, "multiple of 8, got 30"),
    ],
)
def test_what_cannot_be_built_is_said(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, 10, **{"img_size": 32, **options})
