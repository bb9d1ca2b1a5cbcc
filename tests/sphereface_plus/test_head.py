"""The head against loops in float64 that follow the papers' formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sphereface_plus import SphereFaceHead
from sphereface_plus.heads.sphereface import Annealing, psi
from torch.nn import functional

VARIANTS = ("a_softmax", "sphereface_r", "cosface", "arcface", "softmax")


def psi_loop(theta: float, m: float) -> float:
    k = min(math.floor(m * theta / math.pi), math.ceil(m) - 1)
    return (-1) ** k * math.cos(m * theta) - 2 * k


def logits_loop(head: SphereFaceHead, x: torch.Tensor, labels: torch.Tensor, lam: float):
    """One logit at a time, from the formulas; differentiable, in float64."""
    rows = []
    for i, label in enumerate(labels.tolist()):
        row = []
        for j, w in enumerate(head.weight.double()):
            length = x[i].square().sum().sqrt()
            cosine = (x[i] * w).sum() / length / w.square().sum().sqrt()
            theta, m, s = torch.acos(cosine), head.m, head.scale
            k = math.floor(m * theta.item() / math.pi)
            psi_value = (-1) ** k * torch.cos(m * theta) - 2 * k
            if head.variant == "softmax":
                logit = (x[i] * w).sum()
            elif head.variant == "a_softmax":
                logit = length * cosine
                if j == label:
                    logit = length * (lam * cosine + psi_value) / (1 + lam)
            elif j != label:
                logit = s * cosine
            elif head.variant == "sphereface_r":
                logit = s * (cosine + (psi_value - cosine).detach())
            elif head.variant == "cosface":
                logit = s * (cosine - m)
            elif theta.item() + m <= math.pi:
                logit = s * torch.cos(theta + m)
            else:
                logit = s * (cosine - m * math.sin(m))
            row.append(logit)
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("m", [1, 1.5, 1.7, 2, 3, 4, 5])
def test_psi_is_its_definition_on_a_fine_grid(m):
    theta = torch.linspace(0, math.pi, 10001, dtype=torch.float64)
    expected = torch.tensor([psi_loop(t, m) for t in theta.tolist()], dtype=torch.float64)
    torch.testing.assert_close(psi(theta.cos(), m), expected, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    m=st.one_of(st.integers(1, 6), st.floats(1, 4)),
    theta=st.floats(0, math.pi),
    step=st.floats(0, 1e-3),
)
def test_psi_is_continuous_and_never_rises(m, theta, step):
    pair = torch.tensor([theta, min(theta + step, math.pi)], dtype=torch.float64)
    here, there = psi(pair.cos(), m).tolist()
    assert here - (m * step + 1e-6) <= there <= here + 1e-6


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("end", [1.0, -1.0])
def test_psi_keeps_its_gradient_at_both_ends(m, end):
    # d psi / d cos θ = m sin(mθ)/sin θ · (−1)^k, whose limit at both ends is m².
    cosine = torch.tensor(end, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(psi(cosine, m), cosine)
    assert gradient.item() == pytest.approx(m**2, rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lam", [0.0, 5.0, 1000.0])
def test_logits_and_gradients_are_those_of_the_loop(variant, lam):
    torch.manual_seed(0)
    head = SphereFaceHead(6, 7, variant=variant).double()
    x = (3 * torch.randn(40, 6, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(7, (40,))
    ours, loop = head.logits(x, labels, lam=lam), logits_loop(head, x, labels, lam)
    torch.testing.assert_close(ours, loop, rtol=1e-10, atol=1e-10)
    grads = [
        torch.autograd.grad(functional.cross_entropy(z, labels), (x, head.weight))
        for z in (ours, loop)
    ]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("m", [None, "whole"])
def test_finite_at_zero_at_the_class_vector_and_opposite_to_it(variant, m):
    m = None if m is None or variant in ("cosface", "arcface") else 3
    head = SphereFaceHead(4, 3, m=m, variant=variant)
    w = head.weight.detach()
    x = torch.stack([w[0], -w[1], torch.zeros(4), w[2] * 1e-15, w[0] * 1e10]).requires_grad_()
    head(x, torch.tensor([0, 1, 2, 2, 0])).backward()
    assert x.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


def test_lambda_falls_as_published_and_is_in_the_state_dict():
    head = SphereFaceHead(4, 3)
    features, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    for t in range(3):
        lam = max(5.0, 1000 / (1 + 0.12 * (t + 1)))
        expected = functional.cross_entropy(head.logits(features, labels, lam=lam), labels)
        torch.testing.assert_close(head(features, labels), expected)
    resumed = SphereFaceHead(4, 3)
    resumed.load_state_dict(head.state_dict())
    assert resumed.iteration == 3
    head.eval()(features, labels)
    assert head.iteration == 3
    assert Annealing()(torch.tensor(10**6)) == 5


def test_a_large_lambda_is_no_margin_and_m_1_neither():
    features, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    head = SphereFaceHead(4, 3, m=1)
    plain = features @ functional.normalize(head.weight, dim=1).T
    torch.testing.assert_close(head.logits(features, labels, lam=5.0), plain)
    head = SphereFaceHead(4, 3, m=4)
    plain = features @ functional.normalize(head.weight, dim=1).T
    torch.testing.assert_close(head.logits(features, labels, lam=1e6), plain, atol=1e-4, rtol=0)


def test_a_batch_of_one_class_trains():
    head = SphereFaceHead(4, 3)
    head(torch.randn(5, 4), torch.ones(5, dtype=torch.int64)).backward()
    assert head.weight.grad.isfinite().all()


def test_half_precision_features_give_float32_logits_under_autocast():
    head, labels = SphereFaceHead(16, 5), torch.tensor([0, 4])
    x = torch.randn(2, 16).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head.logits(x, labels)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, head.logits(x.float(), labels))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "spherface"}, "expected variant to be one of"),
        ({"m": 2.5}, "whole number"),
        ({"m": 0}, r"in \[1, inf\], got 0"),
        ({"m": 4, "variant": "cosface"}, r"in \[0, 2\], got 4"),
        ({"scale": 0.0}, "scale"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SphereFaceHead(**{"dim": 4, "num_classes": 3, **arguments})


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (torch.randn(2, 5), torch.tensor([0, 1])),
        (torch.randn(2, 4), torch.tensor([0])),
        (torch.randn(2, 4), torch.tensor([0.0, 1.0])),
        (torch.randn(2, 4), torch.tensor([0, 3])),
        (torch.randn(2, 4), torch.tensor([-1, 0])),
    ],
)
def test_bad_batches_are_named(features, labels):
    with pytest.raises(ValueError, match="expected"):
        SphereFaceHead(4, 3)(features, labels)


def test_lambda_starts_where_caffes_log_does():
    head = SphereFaceHead(dim=4, num_classes=3, m=4)
    x, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(head.logits(x, labels), head.logits(x, labels, lam=892.8571))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_zero_feature_or_class_vector_keeps_gradients_small(variant):
    torch.manual_seed(0)
    head = SphereFaceHead(dim=6, num_classes=4, variant=variant)
    with torch.no_grad():
        head.weight[2] = 0
    x = torch.randn(3, 6)
    x[1] = 0
    x.requires_grad_()
    head(x, torch.tensor([0, 2, 3])).backward()
    for gradient in (x.grad, head.weight.grad):
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 100


def test_arcface_falls_at_once_where_the_angle_passes_pi():
    head = SphereFaceHead(dim=2, num_classes=2, variant="arcface", scale=1.0)
    cosines = torch.cos(torch.tensor([[math.pi - 0.5 - 1e-4], [math.pi - 0.5 + 1e-4]]))
    before, after = head._with_margin(cosines, None).flatten().tolist()
    assert before - after == pytest.approx(math.cos(0.5) + 0.5 * math.sin(0.5) - 1, abs=1e-3)


def test_sizes_may_be_numpys_integers():
    head = SphereFaceHead(dim=np.int32(4), num_classes=np.int64(3))
    assert head.weight.shape == (3, 4)
    assert type(head.num_classes) is int
    for wrong in (True, 2.0, np.int64(0)):
        with pytest.raises(ValueError, match="num_classes as a positive integer"):
            SphereFaceHead(dim=4, num_classes=wrong)
