"""Losses and networks of another distribution, by name, from training to samples."""

import pytest
import torch
from mhe_gan.config import GANConfig
from mhe_gan.losses import find_loss
from mhe_gan.networks import create_networks
from mhe_gan.sample import draw_noise, generate, load_generator
from mhe_gan.train import train
from support.distributions import write_distribution

CODE = """
import torch
from mhe_gan.losses import Loss
from mhe_gan.networks import NetworkPair
from torch import nn

class Generator(nn.Module):  # not conditional: it takes the noise alone
    def __init__(self, width, image_size, channels, num_classes):
        super().__init__()
        self.first = nn.Linear(128, 8)
        self.second = nn.Linear(8, channels * image_size**2)
        self.shape = channels, image_size, image_size

    def forward(self, noise):
        return torch.tanh(self.second(self.first(noise).relu())).unflatten(1, self.shape)

class Discriminator(nn.Module):
    def __init__(self, width, image_size, channels, num_classes):
        super().__init__()
        self.features = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * image_size**2, 6), nn.ReLU(), nn.Linear(6, 5)
        )
        self.last = nn.Linear(5, 1)

    def forward(self, images):
        return self.last(self.features(images)).squeeze(1)

dense = NetworkPair(Generator, Discriminator, (16,), "first", "last")
wasserstein = Loss(lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean())
"""
TINY = {"batch_size": 8, "steps": 2, "width": 0.0625, "device": "cpu"}


@pytest.fixture(autouse=True)
def dense(tmp_path, monkeypatch):
    """A distribution with networks and a loss."""
    targets = {
        "mhe_gan.networks": [("dense", "dense:dense"), ("wrong", "dense:wasserstein")],
        "mhe_gan.losses": [("wasserstein", "dense:wasserstein"), ("hinge", "dense:wasserstein")],
    }
    site = write_distribution(tmp_path / "site", "dense", targets, {"dense.py": CODE})
    monkeypatch.syspath_prepend(str(site))


def test_networks_and_a_loss_are_trained_and_sampled(tmp_path):
    settings = {"model": "dense", "loss": "wasserstein", "image_size": 16, "channels": 1, **TINY}
    mhe = {"hidden_weight": 1.0, "generator_weight": 1.0, "stop_on_collapse": True, "r1": 1.0}
    train(GANConfig(output=tmp_path / "run", sample_every=1, **settings, **mhe))
    generator, _, step = load_generator(tmp_path / "run")
    assert type(generator).__name__ == "Generator"
    assert step == 2
    (pixels,) = generate(generator, draw_noise(4, 0))
    assert pixels.shape == (4, 3, 16, 16)


def test_a_loss_below_zero_is_no_sign_of_a_perfect_discriminator(tmp_path):
    settings = {"model": "dense", "image_size": 16, **TINY, "steps": 40, "checkpoint_every": 10}
    run = {"loss": "wasserstein", "lr": 1e-2, "regularizer": "none", **settings}
    assert train(GANConfig(output=tmp_path / "run", **run))["discriminator_loss"] < 0


def test_regularizers_leave_out_the_layers_the_pair_names(make_trainer):
    trainer, _ = make_trainer(
        model="dense", image_size=16, hidden_weight=1.0, generator_weight=1.0, **TINY
    )
    assert list(trainer.generator_regularizer.terms()) == ["second"]
    assert list(trainer.regularizer.terms()) == ["features.1", "features.3"]


def test_the_loss_is_the_packages():
    loss = find_loss("wasserstein")
    assert loss.discriminator(torch.tensor([3.0]), torch.tensor([1.0])) == -2
    assert loss.generator(torch.tensor([1.0])) == -1


def test_no_package_takes_the_place_of_ours():
    assert find_loss("hinge").discriminator(torch.zeros(1), torch.zeros(1)) == 2


def test_what_is_wrong_is_said(tmp_path, monkeypatch):
    for settings, message in (
        ({"model": "stylegan"}, "the model to be one of dcgan, resnet, dense, wrong, got 'styleg"),
        (
            {"model": "wrong"},
            r"\(dense:wasserstein\): expected it to be a mhe_gan.networks.NetworkPair",
        ),
        ({"loss": "lsgan"}, "expected the loss to be one of non_saturating, hinge, wasserstein"),
    ):
        with pytest.raises(ValueError, match=message):
            GANConfig(output=tmp_path / "run", **settings)
    with pytest.raises(ValueError, match=r"an image size of \(16,\), got 32"):
        create_networks("dense")
    with pytest.raises(ValueError, match="expected --image-size of 16 for the networks dense"):
        train(GANConfig(output=tmp_path / "run", model="dense", image_size=32, **TINY))
    with pytest.raises(ValueError, match="expected the metric to be one of inception_score, fid"):
        train(GANConfig(output=tmp_path / "run", best_by="fidd", **TINY))
    assert not (tmp_path / "run").exists()
    second = {"mhe_gan.losses": [("wasserstein", "second:loss")]}
    monkeypatch.syspath_prepend(str(write_distribution(tmp_path / "more", "second", second)))
    with pytest.raises(ValueError, match=r"claimed by dense.* and by second.*second:loss"):
        find_loss("wasserstein")
    assert find_loss("dense:wasserstein").generator(torch.ones(1)) == -1


def test_a_package_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    third = {"mhe_gan.losses": [("absent", "third:loss"), ("malformed", "third.loss")]}
    code = {"third.py": "raise RuntimeError('no such card')"}
    monkeypatch.syspath_prepend(str(write_distribution(tmp_path / "more", "third", third, code)))
    with pytest.raises(ValueError, match=r"loss 'absent' of third 1\.0 \(third:loss\): it cannot"):
        find_loss("absent")
    with pytest.raises(ValueError, match="expected a target of the form module:object"):
        find_loss("malformed")
