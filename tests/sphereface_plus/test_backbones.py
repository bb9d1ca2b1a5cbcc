"""Backbones: the published architecture by its counts, and any other network by its shapes."""

import pytest
import torch
from sphereface_plus.backbones import create_backbone
from torch import nn


@pytest.mark.parametrize("depth", [4, 10, 20, 36, 64])
@pytest.mark.parametrize("end", ["", "_bn"])
def test_sfnet_has_as_many_layers_as_its_name_says(depth, end):
    network = create_backbone(f"sfnet{depth}{end}", dim=16, width=0.125)
    strides = [m.stride[0] for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert sorted(strides) == [1] * (depth - 4) + [2] * 4
    assert sum(isinstance(m, nn.PReLU) for m in network.modules()) == depth
    norms = sum(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in network.modules())
    assert norms == (depth + 1 if end else 0)
    assert network.eval()(torch.zeros(2, 3, 112, 96)).shape == (2, 16)


def test_sfnet20_is_the_published_one():
    # Counted by hand: stride-2 convolutions with bias, residual blocks without, slopes, fc to 512.
    channels = [3, 64, 128, 256, 512]
    blocks = [1, 2, 4, 1]
    count = 512 * 7 * 6 * 512 + 512
    for before, after, n in zip(channels, channels[1:], blocks, strict=False):
        count += 9 * before * after + 2 * after + 2 * n * (9 * after * after + after)
    network = create_backbone("sfnet20")
    assert sum(p.numel() for p in network.parameters()) == count
    assert network.stages[:-1](torch.zeros(1, 3, 112, 96)).shape == (1, 512, 7, 6)


@pytest.mark.parametrize("name", ["sfnet4", "sfnet20", "sfnet64", "sfnet20_bn"])
def test_sfnets_of_any_depth_start_with_embeddings_of_a_like_scale(name):
    torch.manual_seed(0)
    deviation = create_backbone(name, dim=64)(torch.randn(4, 3, 112, 96)).std()
    assert 0.05 < deviation < 2


@pytest.mark.parametrize(
    "name", ["inception_resnet_v1", "resnet10t", "vit_tiny_patch16_224", "mobilenetv3_small_050"]
)
def test_other_networks_take_the_images_as_they_are(name):
    network = create_backbone(name, dim=24).eval()
    assert network(torch.zeros(2, 3, 112, 96)).shape == (2, 24)


@pytest.mark.parametrize("size", [(32, 32), (7, 5), (112, 112)])
def test_sfnet_takes_images_of_any_size(size):
    assert create_backbone("sfnet4", 8, size, 0.1)(torch.zeros(1, 3, *size)).shape == (1, 8)


def test_an_unknown_name_suggests_near_ones():
    with pytest.raises(ValueError, match=r"such as .*sfnet20.*got 'sfnet21'"):
        create_backbone("sfnet21")
    with pytest.raises(ValueError, match="no width factor"):
        create_backbone("resnet18", width=0.5)
