"""Products with directions against their definition, which autograd differentiates."""

import pytest
import torch
from sphereface_plus.heads.products import defined, products_with_directions
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import normalize


def draw(B=5, C=7, d=3, **options):
    torch.manual_seed(0)
    features, weight = torch.randn(B, d, **options), torch.randn(C, d, **options)
    return features.requires_grad_(), weight.requires_grad_()


def gradients(function, features, weight):
    value = function(features, weight)
    torch.manual_seed(1)
    return value, *torch.autograd.grad(value, (features, weight), torch.randn_like(value))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradients_are_those_of_the_definition(dtype, tolerance):
    inputs = draw(64, 200, 32, dtype=dtype)
    found = gradients(products_with_directions, *inputs)
    expected = gradients(lambda x, w: x @ normalize(w, dim=1).mT, *inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_derivatives_of_both_orders():
    inputs = draw(dtype=torch.float64)
    assert gradcheck(products_with_directions, inputs)
    assert gradgradcheck(products_with_directions, inputs)


def test_class_vectors_without_a_direction_stay_as_they_are():
    features, weight = draw(dtype=torch.float64)
    with torch.no_grad():
        weight[0], weight[1] = 0.0, weight[1] * 1e-9
    found = gradients(products_with_directions, features, weight)
    expected = gradients(defined, features, weight)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert found[2].abs().max() < 100


def test_only_the_gradients_that_are_wanted_are_found():
    features, weight = draw()
    for wanted in (features, weight):
        other = weight if wanted is features else features
        other.requires_grad_(False)
        value = products_with_directions(features, weight)
        (gradient,) = torch.autograd.grad(value.sum(), wanted)
        other.requires_grad_(True)
        expected = torch.autograd.grad(defined(features, weight).sum(), wanted)[0]
        torch.testing.assert_close(gradient, expected)


def test_transforms():
    features, weight = draw(dtype=torch.float64)
    rows = torch.func.vmap(products_with_directions, (0, None))(features[:, None], weight)
    torch.testing.assert_close(rows[:, 0], defined(features, weight))
    slope = torch.func.grad(lambda w: products_with_directions(features, w).square().sum())(weight)
    expected = torch.func.grad(lambda w: defined(features, w).square().sum())(weight)
    torch.testing.assert_close(slope, expected)


def test_a_backward_pass_under_autocast_has_float32_products():
    torch.manual_seed(0)
    found = []
    start = torch.randn(6, 5), torch.randn(4, 5)
    for enabled in (False, True):
        features, weight = (x.clone().requires_grad_() for x in start)
        products = products_with_directions(features, weight)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(torch.autograd.grad(products.square().sum(), (features, weight)))
    for outside, under in zip(*found, strict=True):
        assert torch.equal(outside, under)
