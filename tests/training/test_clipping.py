"""--clip-grad against torch's own function."""

import pytest
import torch
from accelerate import Accelerator
from mhe_core.training.clipping import clip_gradients
from mhe_core.training.processes import make_accelerator
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


def loss_of(model, factor=1.0):
    return factor * model(torch.linspace(-1, 1, 15).view(3, 5)).square().sum()


def prepared(accelerator, model):
    return accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("largest", [0.01, 1e6])
def test_gradients_are_scaled_down_to_the_norm_as_torch_does(largest):
    accelerator = make_accelerator("cpu")
    model, optimizer = prepared(accelerator, network())
    accelerator.backward(loss_of(model))
    expected = network()
    loss_of(expected).backward()
    norm = nn.utils.clip_grad_norm_(expected.parameters(), largest)
    clip_gradients(accelerator, optimizer, largest)
    assert torch.equal(gradients(model), gradients(expected))
    assert gradients(model).norm() == pytest.approx(min(float(norm), largest), rel=1e-3)


def test_zero_is_no_bound():
    accelerator = make_accelerator("cpu")
    model, optimizer = prepared(accelerator, network())
    accelerator.backward(loss_of(model, 1e6))
    before = gradients(model).clone()
    clip_gradients(accelerator, optimizer, 0.0)
    assert torch.equal(gradients(model), before)


def test_what_is_clipped_is_the_gradient_without_the_scale_of_fp16_and_of_one_network(monkeypatch):
    accelerator = make_accelerator("cpu")
    # As with --amp fp16, which accelerate has on GPUs only.
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    (model, optimizer), (other, _) = (prepared(accelerator, network()) for _ in range(2))
    accelerator.native_amp = True
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
    for one in (model, other):
        accelerator.backward(loss_of(one))
    scaled = gradients(other).clone()
    expected = network()
    loss_of(expected).backward()
    nn.utils.clip_grad_norm_(expected.parameters(), 0.5)
    clip_gradients(accelerator, optimizer, 0.5)
    torch.testing.assert_close(gradients(model), gradients(expected))
    assert torch.equal(gradients(other), scaled)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    optimizer.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (before - after).norm() == pytest.approx(0.5, rel=1e-3)
