"""The networks: sizes as published, registered with timm."""

import math

import mhe_classification  # noqa: F401  registers the models
import pytest
import timm
import torch
from mhe_classification.models import build_model
from mhe_classification.test import energies
from mhe_core import NetworkRegularizer
from mhe_core.errors import UserError
from mhe_core.network import find_output_layers, weight_at
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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vgg9", {"width": 0.125}),
        ("resnet20", {"width": 0.5}),
        ("test_resnet", {}),
        ("test_vit", {}),
        ("deit_tiny_distilled_patch16_224", {"depth": 2, "embed_dim": 48}),
    ],
)
def test_any_model_takes_small_images_and_learns_them(name, options):
    torch.manual_seed(0)
    model = build_model(name, 3, 32, **options)
    regularizer = NetworkRegularizer(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % 3
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for _ in range(12):
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        (loss + regularizer()).backward()
        optimizer.step()
    assert logits.shape == (6, 3)
    assert loss < 0.5  # at chance it is log 3 = 1.1
    stood_still = [n for n, value in model.named_parameters() if torch.equal(value, before[n])]
    assert not stood_still


def output_problem(name, device="meta"):
    """Why a model of timm's cannot be trained here, or None; built without memory or arithmetic."""
    try:
        with torch.device(device):
            model = build_model(name, 7, 224)
        outputs = find_output_layers(model)
        rows = [weight_at(model, output).neurons().shape[-2] for output in outputs]
    except UserError:
        return None if is_encoder(name) else f"{name}: refused"
    except Exception as error:  # whatever it is, it is to be reported with its name
        return f"{name}: {type(error).__name__}: {error}"
    return None if rows and set(rows) == {7} else f"{name}: {dict(zip(outputs, rows, strict=True))}"


def is_encoder(name: str) -> bool:
    """Whether timm's model has nothing that it calls a classifier."""
    with torch.device("meta"):
        return not hasattr(timm.create_model(name), "get_classifier")


# One of each family whose get_classifier() is no single Linear layer or convolution.
UNUSUAL_HEADS = [
    "deit_tiny_distilled_patch16_224",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientvim_m1",
    "levit_128s",
    "levit_conv_128s",
    "pit_ti_distilled_224",
    "swiftformer_xs",
]


@pytest.mark.parametrize("name", UNUSUAL_HEADS)
def test_the_output_layers_of_unusual_heads_are_found(name):
    if not timm.is_model(name):
        pytest.skip("there are versions of timm without it")
    assert output_problem(name, "cpu") is None  # some read a number while they are built


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_output_layers_of_all_of_timms_models_are_found():
    problems = [problem for name in timm.list_models() if (problem := output_problem(name))]
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_reports_and_penalties_of_models_with_several_heads_are_finite():
    for name in UNUSUAL_HEADS:
        model = build_model(name, 7, 224)
        assert all(math.isfinite(value) for value in energies(model).values()), name
        logits = model.train()(torch.randn(2, 3, 224, 224))
        (logits.square().mean() + NetworkRegularizer(model)()).backward()
        for output in find_output_layers(model):
            assert weight_at(model, output).neurons().isfinite().all()


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
        ("mobilenetv5_300m_enc", {}, "one that classifies, got mobilenetv5_300m_enc"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build_model(name, 10, **{"img_size": 32, **options})
