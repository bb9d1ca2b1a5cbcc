import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from mhe_gan.networks import IMAGE_SIZES, NETWORKS, create_networks, singular_values
from torch import nn


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("size", IMAGE_SIZES)
@pytest.mark.parametrize("spectral_normed", [False, True])
def test_shapes_and_ranges(name, size, spectral_normed):
    torch.manual_seed(0)
    generator, discriminator = create_networks(
        name, width=0.125, image_size=size, spectral_normed=spectral_normed
    )
    images = generator(torch.randn(3, 128))
    assert images.shape == (3, 3, size, size)
    assert images.abs().max() <= 1
    logits = discriminator(images)
    assert logits.shape == (3,)
    logits.sum().backward()
    assert all(p.grad is not None for p in [*generator.parameters(), *discriminator.parameters()])


def test_published_dcgan_has_the_published_number_of_parameters():
    generator, discriminator = create_networks("dcgan", spectral_normed=False)
    # kernel² · in · out + bias of each convolution; 2 per channel of each batch norm
    assert parameters(generator) == (
        128 * 8192 + 2 * 8192
        + 16 * 512 * 256 + 256 + 2 * 256
        + 16 * 256 * 128 + 128 + 2 * 128
        + 16 * 128 * 64 + 64 + 2 * 64
        + 9 * 64 * 3 + 3
    )  # fmt: skip
    assert parameters(discriminator) == (
        9 * 3 * 64 + 64
        + 16 * 64 * 128 + 128
        + 9 * 128 * 128 + 128
        + 16 * 128 * 256 + 256
        + 9 * 256 * 256 + 256
        + 16 * 256 * 512 + 512
        + 9 * 512 * 512 + 512
        + 8192
    )  # fmt: skip


def test_published_resnet_has_the_published_number_of_parameters():
    generator, discriminator = create_networks("resnet", spectral_normed=False)
    block = 2 * (9 * 256 * 256 + 256) + 256 * 256 + 256 + 2 * 2 * 256
    linear, last = 128 * 4096 + 4096, 2 * 256 + 9 * 256 * 3 + 3
    assert parameters(generator) == linear + 3 * block + last
    conv = 9 * 128 * 128 + 128
    first = 9 * 3 * 128 + 128 + conv + 3 * 128 + 128
    assert parameters(discriminator) == first + 2 * conv + 128 * 128 + 128 + 4 * conv + 129


def test_resnet_for_128_pixels_has_the_published_number_of_parameters():
    generator, discriminator = create_networks("resnet", image_size=128, spectral_normed=False)

    def conv(c_in, c_out, kernel):
        return kernel**2 * c_in * c_out + c_out

    channels = [1024, 1024, 512, 256, 128, 64]
    blocks = sum(
        2 * a + 2 * b + conv(a, b, 3) + conv(b, b, 3) + conv(a, b, 1) for a, b in pairwise(channels)
    )
    assert parameters(generator) == 129 * 1024 * 16 + blocks + 2 * 64 + conv(64, 3, 3)
    first = conv(3, 64, 3) + conv(64, 64, 3) + conv(3, 64, 1)
    halving = sum(
        conv(c, c, 3) + conv(c, 2 * c, 3) + conv(c, 2 * c, 1) for c in (64, 128, 256, 512)
    )
    assert parameters(discriminator) == first + halving + 2 * conv(1024, 1024, 3) + 1025


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_width_scales_channels_and_spectral_norm_adds_no_parameters(name):
    pairs = [create_networks(name, width=w, spectral_normed=False) for w in (0.25, 0.5)]
    for small, large in zip(*pairs, strict=True):
        assert 2 < parameters(large) / parameters(small) < 4
    with_norm = create_networks(name, width=0.25, spectral_normed=True)
    assert parameters(with_norm[1]) == parameters(pairs[0][1])


def test_initial_statistics_of_dcgan():
    torch.manual_seed(0)
    generator, discriminator = create_networks("dcgan", spectral_normed=False)
    # a normal distribution cut at two standard deviations keeps 0.8796 of its own
    for network in (generator, discriminator):
        for module in network.modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                continue
            weight, count = module.weight, module.weight.numel()
            assert weight.abs().max() <= 0.04
            assert weight.mean().abs() < 5 * 0.02 / math.sqrt(count)
            assert weight.std().item() == pytest.approx(0.8796 * 0.02, rel=5 / math.sqrt(count))
            assert module.bias is None or module.bias.eq(0).all()
    noise = torch.randn(256, 128)
    hidden = generator.project[:2](noise)  # batch norm: each feature has mean 0 and variance 1
    torch.testing.assert_close(hidden.mean(0), torch.zeros(8192), atol=1e-4, rtol=0)
    torch.testing.assert_close(hidden.var(0, correction=0), torch.ones(8192), atol=1e-3, rtol=0)
    images = generator(noise)
    assert 0.05 < images.std() < 0.6  # neither dead nor saturated


def test_signals_have_the_same_size_at_every_width():
    logits = {}
    for width in (1.0, 0.25):
        torch.manual_seed(0)
        _, discriminator = create_networks("dcgan", width=width, spectral_normed=False)
        logits[width] = discriminator(torch.rand(16, 3, 32, 32) * 2 - 1).abs().mean().item()
        assert discriminator.features[0].weight.abs().max() <= 0.04  # three inputs at any width
    assert 0.2 < logits[0.25] / logits[1.0] < 5


def test_initial_statistics_of_resnet():
    torch.manual_seed(0)
    generator, discriminator = create_networks("resnet", spectral_normed=False)
    for network in (generator, discriminator):
        for name, module in network.named_modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d)):
                continue
            fan_out, fan_in = module.weight.flatten(1).shape
            if isinstance(module, nn.Conv2d):
                fan_out *= module.kernel_size[0] ** 2
            gain = 2 if "residual" in name else 1
            expected = math.sqrt(gain * 2 / (fan_in + fan_out))
            tolerance = 5 / math.sqrt(module.weight.numel())
            assert module.weight.std().item() == pytest.approx(expected, rel=tolerance)
    images = generator(torch.randn(16, 128))
    assert 0.1 < images.std() < 0.9  # neither dead nor saturated
    logits = discriminator(images)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_discriminator_judges_each_image_alone(name):
    torch.manual_seed(0)
    _, discriminator = create_networks(name, width=0.125)
    discriminator.eval()
    images = torch.rand(6, 3, 32, 32)
    one_by_one = torch.cat([discriminator(image[None]) for image in images])
    torch.testing.assert_close(discriminator(images), one_by_one)


def test_spectral_norm_keeps_every_layer_at_one_while_it_trains():
    torch.manual_seed(0)
    _, discriminator = create_networks("dcgan", width=0.25)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    target = torch.randn(16, 3, 32, 32)
    for _ in range(40):
        loss = nn.functional.softplus(discriminator(target.roll(1, 0)) - 1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    discriminator(target)
    values = singular_values(discriminator)
    assert len(values) == 8
    for name, value in values.items():
        assert value.item() == pytest.approx(1, rel=0.05), name


def test_singular_values_are_those_of_numpy_and_run_no_power_iteration():
    _, discriminator = create_networks("dcgan", width=0.125)
    vectors = {k: v.clone() for k, v in discriminator.named_buffers()}
    values = singular_values(discriminator)
    assert discriminator.training
    for name, buffer in discriminator.named_buffers():
        assert torch.equal(buffer, vectors[name])
    discriminator.eval()
    matrix = discriminator.features[2].weight.detach().flatten(1).numpy()
    assert values["features.2"].item() == pytest.approx(
        np.linalg.svd(matrix, compute_uv=False)[0], rel=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "stylegan"}, "expected the model to be one of"),
        ({"image_size": 28}, "expected an image size of"),
        ({"width": 0}, "expected a positive width"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_networks(**arguments)
