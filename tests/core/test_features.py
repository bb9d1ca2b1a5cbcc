"""Energies of features in one process; test_sharded.py has them on several."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mhe_core import (
    class_uniformity,
    feature_energy,
    feature_uniformity,
    hyperspherical_energy,
)
from mhe_core.energy import Gaussian

hypersphere = pytest.importorskip("lightly.loss.hypersphere_loss")
koleo_loss = pytest.importorskip("lightly.loss.koleo_loss")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def gradient(function, x):
    x = x.clone().requires_grad_()
    value = function(x)
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("t", [0.5, 2.0, 5.0])
def test_uniformity_is_that_of_lightly(t):
    x = torch.randn(20, 6, dtype=torch.float64)
    lightly = hypersphere.HypersphereLoss(t=t)
    for got, want in zip(
        gradient(lambda x: feature_uniformity(x, t=t), x),
        gradient(lambda x: lightly(x, x), x),  # both views the same: nothing is left to align
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    energy = feature_energy(x, potential=Gaussian(t))
    torch.testing.assert_close(energy.log(), feature_uniformity(x, t=t))


def test_the_logarithmic_energy_of_two_is_lightlys_koleo():
    x = torch.randn(2, 6, dtype=torch.float64)  # each the other's nearest neighbour
    koleo = koleo_loss.KoLeoLoss(eps=1e-15)
    for got, want in zip(
        gradient(lambda x: feature_energy(x, s=0), x), gradient(koleo, x), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_the_options_are_the_energys():
    x = torch.randn(9, 4)
    for options in ({"s": 1}, {"distance": "angular"}, {"half_space": True}):
        torch.testing.assert_close(
            feature_energy(x, **options), hyperspherical_energy(x, **options)
        )


@given(rows=st.integers(1, 5), dtype=st.sampled_from([torch.float16, torch.float32]))
def test_equal_features_have_finite_energies_and_gradients(rows, dtype):
    x = torch.ones(rows, 3, dtype=dtype)
    for function in (feature_energy, feature_uniformity, lambda x: feature_energy(x, s=0)):
        value, slope = gradient(function, x)
        assert value.isfinite()
        assert slope.isfinite().all()
    assert feature_uniformity(x) == 0
    if rows == 1:
        assert feature_energy(x) == 0


def test_a_vanishing_potential_has_a_finite_logarithm():
    value, slope = gradient(lambda x: feature_uniformity(x, t=100), torch.eye(2) - 0.5)
    assert value == math.log(torch.finfo(torch.float32).tiny)
    assert slope.isfinite().all()


class TestClassUniformity:
    def test_is_the_energy_of_the_means_of_directions(self):
        x, labels = torch.randn(30, 5), torch.arange(30) % 4 * 2  # odd classes are absent
        directions = torch.nn.functional.normalize(x)
        means = torch.stack([directions[labels == k].mean(0) for k in (0, 2, 4, 6)])
        for options in ({}, {"s": 1, "distance": "angular"}, {"potential": Gaussian(2.0)}):
            torch.testing.assert_close(
                class_uniformity(x, labels, **options), hyperspherical_energy(means, **options)
            )

    def test_is_a_figure(self):
        x = torch.randn(6, 3, requires_grad=True)
        assert not class_uniformity(x, torch.arange(6) % 2).requires_grad
        assert class_uniformity(x, torch.zeros(6, dtype=torch.int32)) == 0

    def test_a_simplex_is_the_least(self):
        vectors = torch.eye(4) - 0.25
        value = class_uniformity(vectors.repeat(3, 1), torch.arange(4).repeat(3))
        assert value.item() == pytest.approx(3 / 8)

    @pytest.mark.parametrize(
        ("labels", "error", "message"),
        [
            (torch.zeros(3), TypeError, "labels as integers, got torch.float32 and torch.float32"),
            (torch.zeros(2, dtype=torch.int64), ValueError, r"got \[3, 2\] and \[2\]"),
            (torch.tensor([0, 1, -1]), ValueError, "labels ≥ 0, got -1"),
        ],
    )
    def test_what_is_refused(self, labels, error, message):
        with pytest.raises(error, match=message):
            class_uniformity(torch.ones(3, 2), labels)
