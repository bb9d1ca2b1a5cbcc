import math
from dataclasses import replace

import pytest
import torch
from mhe_gan.losses import LOSSES, discriminator_loss, generator_loss


def test_non_saturating_equals_cross_entropy():
    torch.manual_seed(0)
    real, fake = torch.randn(7, dtype=torch.float64), torch.randn(5, dtype=torch.float64)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    expected = -sum(math.log(sigmoid(x)) for x in real.tolist()) / 7
    expected -= sum(math.log(1 - sigmoid(x)) for x in fake.tolist()) / 5
    assert discriminator_loss(real, fake).item() == pytest.approx(expected)
    expected = -sum(math.log(sigmoid(x)) for x in fake.tolist()) / 5
    assert generator_loss(fake).item() == pytest.approx(expected)


def test_hinge():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.25])
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(0.5 / 2 + 1.25 / 2)
    assert generator_loss(fake, "hinge").item() == pytest.approx(2.75 / 2)


@pytest.mark.parametrize("kind", ["non_saturating", "hinge"])
def test_the_losses_pull_apart(kind):
    real = torch.zeros(3, requires_grad=True)
    fake = torch.zeros(3, requires_grad=True)
    discriminator_loss(real, fake, kind).backward()
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()
    fake.grad = None
    generator_loss(fake, kind).backward()
    assert (fake.grad < 0).all()


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_the_flag_reaches_the_loss_of_both_networks(make_trainer, monkeypatch, network):
    calls = []
    compute = getattr(LOSSES["hinge"], network)

    def noted(*logits):
        calls.append(len(logits))
        return compute(*logits)

    monkeypatch.setitem(LOSSES, "hinge", replace(LOSSES["hinge"], **{network: noted}))
    trainer, batch = make_trainer(loss="hinge")
    trainer.step(0, batch)
    assert calls == [{"generator": 1, "discriminator": 2}[network]]


def test_extreme_logits_stay_finite():
    huge = torch.tensor([1e4, -1e4], requires_grad=True)
    (discriminator_loss(huge, huge) + generator_loss(huge)).backward()
    assert huge.grad.isfinite().all()


def test_unknown_loss():
    with pytest.raises(ValueError, match="expected the loss to be one of"):
        discriminator_loss(torch.zeros(1), torch.zeros(1), "wasserstein")
    with pytest.raises(ValueError, match="expected the loss to be one of"):
        generator_loss(torch.zeros(1), "wasserstein")
