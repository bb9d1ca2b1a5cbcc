"""MHE on the discriminator: the published gradient, raw weights, no extra power iteration."""

import math

import pytest
import torch
from mhe_core import NetworkRegularizer
from mhe_gan.compare import MODELS
from mhe_gan.config import GANConfig
from mhe_gan.networks import create_networks
from torch.nn.utils import parametrizations


def published_loss(weight, strength, eps):
    """What the published program adds for one layer, written out from its formula.

    A filter and its negative, one below the other, double the dimension; the mean is taken over
    all N² entries, of which the upper triangle is not constant; two copies of the discriminator,
    for real and for generated images, add it twice.
    """
    filters = weight.flatten(1).T
    doubled = torch.cat([filters, -filters])
    doubled = doubled / (doubled.square().sum(0, keepdim=True) + eps).sqrt()
    cosines = doubled.T @ doubled
    above = torch.ones_like(cosines).triu(1).bool()
    squared = torch.where(above, 2 - 2 * cosines, 0)
    entries = torch.where(above, torch.log(squared + eps), torch.zeros_like(squared))
    return -2 * strength * entries.sum() / len(weight) ** 2


def gradients(discriminator, loss):
    weights = [m.parametrizations.weight.original for m in discriminator.features[:-1:2]]
    return weights, torch.autograd.grad(loss, weights)


@pytest.mark.parametrize(("eps", "tolerance"), [(0.0, 1e-9), (1e-4, 0.02)])
def test_gradient_is_the_published_one(eps, tolerance):
    """Without the program's two constants exactly, with them within 2 % at its initial weights.

    The published mean divides by N² where ours divides by the N (N − 1) / 2 pairs: a factor of
    (N − 1) / N, between 0.984 and 0.998 at full width, is left out of our weight.
    """
    torch.manual_seed(0)
    _, discriminator = create_networks("dcgan", width=0.5)
    discriminator.double()
    config = GANConfig(output="unused", steps=1)
    energy = NetworkRegularizer(
        discriminator,
        "mhe",
        None,
        hidden_weight=config.hidden_weight,
        hidden_options=config.energy_options(),
    )
    weights, ours = gradients(discriminator, energy())
    _, theirs = gradients(discriminator, sum(published_loss(w, 1e-7, eps) for w in weights))
    for weight, g, published in zip(weights, ours, theirs, strict=True):
        N = len(weight)
        expected = published * N / (N - 1)
        assert (g - expected).norm() <= tolerance * expected.norm(), N


def test_published_weights_are_the_default():
    assert GANConfig(output="x").hidden_weight == 2e-7
    assert GANConfig(output="x", spectral_norm=False).hidden_weight == 2e-6
    assert GANConfig(output="x", hidden_weight=0.5).hidden_weight == 0.5
    assert GANConfig(output="x").energy_options() == {"s": 0}
    assert GANConfig(output="x", regularizer_options={"s": 2}).energy_options() == {"s": 2}
    assert GANConfig(output="x", regularizer="comhe_group").energy_options() == {}
    for long in ("mhe-core:mhe", "mhe-core:half_mhe"):
        assert GANConfig(output="x", regularizer=long).energy_options() == {"s": 0}
    assert GANConfig(output="x", regularizer="elsewhere:mhe").energy_options() == {}


@pytest.mark.parametrize("n_dis", [1, 3])
@pytest.mark.parametrize("regularizer", ["none", "mhe"])
def test_power_iterations_are_those_of_spectral_norm_alone(
    make_trainer, monkeypatch, n_dis, regularizer
):
    trainer, batch = make_trainer(regularizer=regularizer, n_dis=n_dis)
    done = []
    original = parametrizations._SpectralNorm._power_method

    def counted(self, matrix, iterations):
        done.append(iterations)
        return original(self, matrix, iterations)

    monkeypatch.setattr(parametrizations._SpectralNorm, "_power_method", counted)
    trainer.step(0, batch)
    assert done == [1] * 8 * (1 + n_dis)  # eight layers, once a forward pass
    done.clear()
    trainer.figures()
    assert not done


def test_the_regularizer_moves_raw_weights_only_and_leaves_the_vectors(make_trainer):
    trainer, _ = make_trainer()
    before = {name: buffer.clone() for name, buffer in trainer.discriminator.named_buffers()}
    trainer.regularizer().backward()
    for name, buffer in trainer.discriminator.named_buffers():
        assert torch.equal(buffer, before[name])
    with_gradient = {n for n, p in trainer.discriminator.named_parameters() if p.grad is not None}
    assert with_gradient == {
        f"features.{i}.parametrizations.weight.original" for i in range(0, 14, 2)
    }


def test_mhe_spreads_the_filters(make_trainer):
    """At a weight that shows in a few steps."""
    energies = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        trainer, batch = make_trainer(hidden_weight=weight, lr=1e-3)
        for step in range(10):
            trainer.step(step, batch)
        energies[weight] = trainer.figures()["discriminator_energy"]
    assert energies[1.0] < energies[0.0] - 0.01


def test_every_third_penalty_counts_three_times(make_trainer):
    trainer, batch = make_trainer(penalty_every=3, hidden_weight=0.5)
    expected = 3 * trainer.regularizer().item()
    penalties = [float(trainer.step(step, batch)["penalty"]) for step in range(5)]
    assert penalties[0] == pytest.approx(expected)
    assert penalties[3] == pytest.approx(expected, rel=0.05)
    assert penalties[1] == penalties[2] == penalties[4] == 0


@pytest.mark.parametrize("regularizer", ["half_mhe", "comhe_random"])
@pytest.mark.parametrize("model", ["dcgan", "resnet"])
def test_any_regularizer_on_both_networks(make_trainer, regularizer, model):
    trainer, batch = make_trainer(
        regularizer=regularizer, model=model, generator_weight=0.5, hidden_weight=0.25
    )
    for part, weight in ((trainer.regularizer, 0.25), (trainer.generator_regularizer, 0.5)):
        terms = part.terms()
        assert part().item() == pytest.approx(weight * sum(t.item() for t in terms.values()))
        assert not any("project" in name or name == "output" for name in terms)
    metrics = trainer.step(0, batch)
    assert all(math.isfinite(float(value)) for value in metrics.values())
    total = metrics["generator_loss"] + metrics["discriminator_loss"] + metrics["penalty"]
    assert float(metrics["loss"]) == pytest.approx(float(total))


@pytest.mark.parametrize("regularizer", ["mhe-core:mhe", "in-process:mhe"])
def test_a_plug_in_of_the_same_name_breaks_no_run(make_trainer, clash, regularizer):
    settings = {"regularizer": regularizer, "hidden_weight": 1.0, "generator_weight": 1.0}
    trainer, batch = make_trainer(spectral_norm=False, **settings)
    assert trainer.step(0, batch)["penalty"] != 0  # that of s = 0 may be below
    assert 0 < trainer.figures()["discriminator_above_floor"] < 100
    for model in MODELS.values():
        assert GANConfig(output="x", **model).regularizer in ("none", "mhe-core:mhe")
