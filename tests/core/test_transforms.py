"""The energy under the transforms of torch.func, forward mode, the compiler and fake tensors."""

from __future__ import annotations

import pytest
import torch
from mhe_core import hyperspherical_energy
from mhe_core.energy import Gaussian
from torch import Tensor, nn
from torch.autograd import forward_ad

OPTIONS = [
    {},
    {"half_space": True},
    {"s": 1.0, "distance": "angular", "half_space": True},
    {"s": 0.0, "convention": "released_code"},
    {"potential": Gaussian(1.5)},
]


def layers(*shape: int, near: bool = True) -> Tensor:
    w = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if near:
        w[..., 0, :] = w[..., 1, :] + 0.1 * w[..., 0, :]
    return w


@pytest.fixture(params=OPTIONS, ids=str)
def energy(request):
    def energy(neurons: Tensor) -> Tensor:
        return hyperspherical_energy(neurons, **request.param)

    return energy


def gradient(energy, w: Tensor) -> Tensor:
    w = w.detach().clone().requires_grad_()
    return torch.autograd.grad(energy(w).sum(), w)[0]


def test_vmap_is_the_batch(energy):
    batch = layers(3, 5, 4)
    torch.testing.assert_close(torch.vmap(energy)(batch), energy(batch))
    inner = torch.vmap(energy, in_dims=1)(batch.movedim(0, 1))
    torch.testing.assert_close(inner, energy(batch))
    twice = torch.vmap(torch.vmap(energy))(layers(2, 3, 5, 4))
    torch.testing.assert_close(twice, energy(layers(2, 3, 5, 4)))


def test_vmap_of_grad_and_grad_of_vmap(energy):
    batch = layers(3, 5, 4)
    want = gradient(energy, batch)
    torch.testing.assert_close(torch.vmap(torch.func.grad(energy))(batch), want)
    got = torch.func.grad(lambda w: torch.vmap(energy)(w).sum())(batch)
    torch.testing.assert_close(got, want)


def test_jacobians_and_forward_mode(energy):
    w, t = layers(5, 4), layers(5, 4, near=False)
    want = gradient(energy, w)
    torch.testing.assert_close(torch.func.jacrev(energy)(w), want)
    torch.testing.assert_close(torch.func.jacfwd(energy)(w), want)
    torch.testing.assert_close(torch.func.jvp(energy, (w,), (t,))[1], (want * t).sum())
    with forward_ad.dual_level():
        along = forward_ad.unpack_dual(energy(forward_ad.make_dual(w, t))).tangent
    torch.testing.assert_close(along, (want * t).sum())


def test_hessians_agree(energy):
    w = layers(4, 3)
    leaf = w.clone().requires_grad_()
    want = torch.autograd.functional.hessian(energy, leaf)
    torch.testing.assert_close(torch.func.hessian(energy)(w), want)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(energy))(w), want)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacfwd(energy))(w), want)
    batch = layers(2, 4, 3)
    got = torch.vmap(torch.func.hessian(energy))(batch)
    torch.testing.assert_close(got[1], torch.func.hessian(energy)(batch[1]))


def test_gradcheck_in_both_modes(energy):
    w = layers(5, 3, near=False).requires_grad_()
    assert torch.autograd.gradcheck(energy, w, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(energy, w)


def test_each_rows_energy_has_them_too(energy):
    w = layers(5, 4)

    def of_rows(x: Tensor) -> Tensor:
        return hyperspherical_energy(x, half_space=True, reduction="none")

    leaf = w.clone().requires_grad_()
    want = torch.autograd.functional.jacobian(of_rows, leaf)
    torch.testing.assert_close(torch.func.jacrev(of_rows)(w), want)
    torch.testing.assert_close(torch.func.jacfwd(of_rows)(w), want)
    torch.testing.assert_close(torch.vmap(of_rows)(layers(2, 5, 4)), of_rows(layers(2, 5, 4)))


def test_a_batch_of_output_gradients():
    w = layers(3, 5, 4).requires_grad_()
    value = hyperspherical_energy(w)
    (got,) = torch.autograd.grad(value, w, torch.eye(3, dtype=w.dtype), is_grads_batched=True)
    want = gradient(hyperspherical_energy, w)
    for k in range(3):
        torch.testing.assert_close(got[k, k], want[k])


def test_batched_anchors_are_refused():
    index = torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises((ValueError, RuntimeError)):
        torch.vmap(lambda w, a: hyperspherical_energy(w, anchors=a))(layers(3, 5, 4), index)


def test_checkpointed(energy):
    w = layers(5, 4).requires_grad_()
    value = torch.utils.checkpoint.checkpoint(energy, w, use_reentrant=False)
    (got,) = torch.autograd.grad(value, w)
    torch.testing.assert_close(got, gradient(energy, w))


def test_nn_parameters_are_left_as_they_are():
    layer = nn.Linear(4, 5)
    before = layer.weight.detach().clone()
    torch.vmap(hyperspherical_energy)(layer.weight.expand(2, 5, 4)).sum().backward()
    assert torch.equal(layer.weight.detach(), before)
    torch.testing.assert_close(layer.weight.grad, 2 * gradient(hyperspherical_energy, before))
