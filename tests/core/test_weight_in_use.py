"""Neurons are those of the weight that the forward pass uses: against its Jacobian, by autograd."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from mhe_core import NetworkRegularizer, hyperspherical_energy, neuron_matrix
from mhe_core.network import named_weights
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def weight_of_forward(module: nn.Module, x: Tensor) -> Tensor:
    """The Jacobian of a linear layer's one output position: what its input is multiplied by."""
    jacobian = torch.autograd.functional.jacobian
    return jacobian(lambda x: module(x).flatten(), x, create_graph=True).flatten(1)


def energy_and_gradients(module: nn.Module, neurons: Tensor) -> tuple[Tensor, list[Tensor]]:
    energy = hyperspherical_energy(neurons, half_space=True, s=1).mean()
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(energy, parameters, allow_unused=True)
    filled = [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)
    ]
    return energy, filled


def check_against_forward(module: nn.Module, x: Tensor) -> None:
    """Value, gradient of every parameter, and that reading changed nothing and draws nothing."""
    module = module.double().train()
    before = copy.deepcopy(module.state_dict())
    generator = torch.get_rng_state()
    neurons = neuron_matrix(module)
    assert torch.equal(torch.get_rng_state(), generator)
    after = module.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    got, gradients = energy_and_gradients(module, neurons)
    want, expected = energy_and_gradients(module, weight_of_forward(module, x.double()))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-12)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-10)
    assert named_weights(module)[""].trained


def linear() -> nn.Linear:
    return nn.Linear(6, 5)


def conv(**options: object) -> nn.Conv2d:
    return nn.Conv2d(3, 8, 2, **options)


def with_step(layer: nn.Module, step: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", step)


def old_weight_norm(layer: nn.Module, **options: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer, **options)


def turned(layer: nn.Module, lengths: str) -> nn.Module:
    """Some lengths of a weight norm made negative, all unlike."""
    g = layer.get_parameter(lengths)
    with torch.no_grad():
        g.mul_(torch.linspace(-2, 3, g.numel()).view_as(g))
    return layer


class LowRankUpdate(nn.Module):
    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.b = nn.Parameter(torch.randn(rows, 2))
        self.a = nn.Parameter(torch.randn(2, columns))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


class Mask(nn.Module):
    def __init__(self, *shape: int):
        super().__init__()
        self.register_buffer("mask", torch.rand(shape) > 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def adapted_and_frozen() -> nn.Module:
    layer = linear()
    layer.weight.requires_grad_(False)
    return with_step(layer, LowRankUpdate(5, 6))


KINDS = {
    "spectral norm": lambda: parametrizations.spectral_norm(linear()),
    "spectral norm of a convolution": lambda: parametrizations.spectral_norm(conv()),
    "old spectral norm": lambda: nn.utils.spectral_norm(linear()),
    "weight norm": lambda: turned(
        parametrizations.weight_norm(linear()), "parametrizations.weight.original0"
    ),
    "weight norm of the whole": lambda: parametrizations.weight_norm(linear(), dim=None),
    "weight norm by input": lambda: turned(
        parametrizations.weight_norm(linear(), dim=1), "parametrizations.weight.original0"
    ),
    "old weight norm": lambda: turned(old_weight_norm(linear()), "weight_g"),
    "old weight norm of the whole": lambda: old_weight_norm(linear(), dim=None),
    "old weight norm by input": lambda: turned(old_weight_norm(linear(), dim=1), "weight_g"),
    "spectral norm of a weight norm": lambda: parametrizations.spectral_norm(
        turned(parametrizations.weight_norm(linear()), "parametrizations.weight.original0")
    ),
    "orthogonal": lambda: parametrizations.orthogonal(linear()),
    "spectral norm of an orthogonal": lambda: parametrizations.spectral_norm(
        parametrizations.orthogonal(linear())
    ),
    "low-rank update of a frozen weight": adapted_and_frozen,
    "mask, then low-rank update": lambda: with_step(
        with_step(linear(), Mask(5, 6)), LowRankUpdate(5, 6)
    ),
    "random pruning": lambda: prune.random_unstructured(linear(), "weight", amount=0.5),
    "structured pruning": lambda: prune.ln_structured(linear(), "weight", 0.4, n=2, dim=1),
    "structured pruning of neurons": lambda: prune.random_structured(conv(), "weight", 2, dim=0),
    "custom pruning": lambda: prune.custom_from_mask(linear(), "weight", torch.rand(5, 6) > 0.3),
    "pruned twice": lambda: prune.l1_unstructured(
        prune.random_unstructured(conv(groups=1), "weight", 0.3), "weight", 0.3
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_in_use_is_read(kind):
    module = KINDS[kind]()
    x = torch.zeros(1, 3, 2, 2) if isinstance(module, nn.Conv2d) else torch.zeros(1, 6)
    check_against_forward(module, x)


@pytest.mark.parametrize("kind", ["low_rank", "fixed_rank", "grassmannian", "orthogonal", "sphere"])
def test_geotorchs_manifolds_are_computed(kind):
    geotorch = pytest.importorskip("geotorch")
    options = {"low_rank": [2], "fixed_rank": [2]}.get(kind, [])
    layer = getattr(geotorch, kind)(nn.Linear(4, 6), "weight", *options)
    check_against_forward(layer, torch.zeros(1, 4))


def test_a_rescaling_in_the_middle_of_a_chain_is_applied_without_a_trace():
    """What follows a spectral norm sees the scale: computed on copies of its vectors."""
    layer = with_step(parametrizations.spectral_norm(linear()), LowRankUpdate(5, 6))
    vectors = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    got = neuron_matrix(layer)
    assert all(torch.equal(buffer, vectors[name]) for name, buffer in layer.named_buffers())
    torch.testing.assert_close(got, layer.weight)  # in train mode: one power iteration in both
    assert not all(torch.equal(buffer, vectors[name]) for name, buffer in layer.named_buffers())


class Orthonormality(nn.Module):
    """‖WWᵀ − I‖², for which lengths count; a module without any of a regularizer's attributes."""

    def forward(self, neurons: Tensor) -> Tensor:
        return (neurons @ neurons.mT - torch.eye(len(neurons), dtype=neurons.dtype)).square().sum()


def penalty_of(module: nn.Module, **options: object) -> NetworkRegularizer:
    """The weight's orthonormality, as a network's penalty."""
    options |= {"output": None, "output_layer": (), "clip_factor": None}
    return NetworkRegularizer(nn.Sequential(module), Orthonormality(), **options)


class TestLengths:
    """What depends on lengths sees those of the weight that forward uses."""

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("kind", KINDS)
    def test_are_those_in_use(self, kind, training):
        module = KINDS[kind]().double().train(training)
        is_convolution = isinstance(module, nn.Conv2d)
        x = torch.zeros(1, 3, 2, 2) if is_convolution else torch.zeros(1, 6)
        with torch.no_grad():  # so that a spectral norm is none of the weight's own scale
            for parameter in module.parameters():
                parameter.mul_(3.0)
        regularizer = penalty_of(module)
        state = copy.deepcopy(module.state_dict())
        got = regularizer()
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
        want = Orthonormality()(weight_of_forward(module, x.double()))
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
        parameters = [p for p in module.parameters() if p.requires_grad]
        gradients = [torch.autograd.grad(e, parameters, allow_unused=True) for e in (got, want)]
        for one, other in zip(*gradients, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize(
        "kind", ["weight norm", "spectral norm", "spectral norm of a weight norm"]
    )
    def test_are_those_of_the_attribute(self, kind):
        module = KINDS[kind]().eval()
        got = penalty_of(module)()
        torch.testing.assert_close(got, Orthonormality()(module.weight))

    def test_are_trained_where_the_directions_are_frozen(self):
        module = KINDS["weight norm"]()
        module.parametrizations.weight.original1.requires_grad_(False)
        penalty_of(module)().backward()
        assert module.parametrizations.weight.original0.grad.abs().min() > 0
        regularizer = NetworkRegularizer(nn.Sequential(module), output=None, output_layer=())
        assert not regularizer.terms()  # of directions, all are frozen

    def test_each_part_of_a_split_weight_has_its_own(self):
        module = KINDS["weight norm"]()
        regularizer = penalty_of(module, split={"0": [2, 3]})
        want = sum(Orthonormality()(part) for part in module.weight.split([2, 3]))
        torch.testing.assert_close(sum(regularizer.terms().values()), want)

    def test_the_scales_belong_to_the_layer(self):
        regularizer = penalty_of(KINDS["weight norm"]())
        assert [role.role for role in regularizer.describe()] == ["hidden", "hidden"]


class StandardizedLinear(nn.Linear):
    """Somebody's layer, with a weight that only forward knows."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return nn.functional.linear(x, weight=nn.functional.normalize(weight), bias=self.bias)


class MaskedConv(nn.Conv2d):
    """As in PixelCNN: forward changes the stored weight."""

    def __init__(self, *args: object):
        super().__init__(*args)
        self.register_buffer("mask", torch.rand(self.weight.shape) > 0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class TestWeightsThatForwardComputes:
    @pytest.mark.parametrize(
        "name", ["StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"]
    )
    @pytest.mark.parametrize("groups", [1, 2])
    def test_timms_standardized_convolutions(self, name, groups):
        layers = pytest.importorskip("timm.layers")
        layer = getattr(layers, name)(4, 6, 2, padding=0, groups=groups)
        if hasattr(layer, "gain"):
            nn.init.normal_(layer.gain)
        layer = layer.double()
        neurons = neuron_matrix(layer)
        pixel = layer(torch.eye(16).double().view(16, 4, 2, 2))[..., 0, 0]
        want = (pixel - layer(torch.zeros(1, 4, 2, 2).double())[..., 0, 0]).T  # [out, inputs]
        wanted = want.view(groups, 6 // groups, groups, -1)
        want = torch.stack([wanted[g, :, g] for g in range(groups)])
        got = energy_and_gradients(layer, neurons)
        expected = energy_and_gradients(layer, want)
        torch.testing.assert_close(got[0], expected[0])
        torch.testing.assert_close(got[1][0], expected[1][0], rtol=1e-6, atol=1e-9)

    def test_anybodys_linear_layer(self):
        check_against_forward(StandardizedLinear(6, 5), torch.zeros(1, 6))
        check_against_forward(
            parametrizations.spectral_norm(StandardizedLinear(6, 5)), torch.zeros(1, 6)
        )

    def test_a_forward_in_which_lengths_count_has_the_rescaled_weight(self):
        class WithIdentity(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                weight = self.weight + torch.eye(5, 6).to(x.dtype)
                return nn.functional.linear(x, weight, self.bias)

        for normed in (parametrizations.spectral_norm, parametrizations.weight_norm):
            check_against_forward(normed(WithIdentity(6, 5)), torch.zeros(1, 6))

    def test_a_forward_that_changes_the_module_is_run_on_a_copy(self):
        layer = MaskedConv(3, 8, 2)
        stored = layer.weight.detach().clone()
        neurons = neuron_matrix(layer)
        assert torch.equal(layer.weight, stored)
        torch.testing.assert_close(neurons, (stored * layer.mask).flatten(1))

    def test_what_cannot_be_seen_is_said_and_read_as_stored(self):
        class Opaque(nn.Linear):
            def forward(self, x):
                return torch.einsum("bi,oi->bo", x, self.weight.tanh())

        layer = Opaque(4, 3)
        with pytest.warns(UserWarning, match=r"cannot see the weight that Opaque\.forward uses"):
            assert torch.equal(neuron_matrix(layer), layer.weight)


class TestFrozen:
    def test_is_what_is_computed_from_nothing_that_is_trained(self):
        model = nn.Sequential(adapted_and_frozen(), linear())
        assert named_weights(model)["0"].trained
        for parameter in model[0].parameters():
            parameter.requires_grad_(False)
        assert not named_weights(model)["0"].trained

    def test_a_frozen_weight_under_a_mask_is_frozen(self):
        layer = prune.random_unstructured(linear(), "weight", 0.5)
        layer.weight_orig.requires_grad_(False)
        assert not named_weights(layer)[""].trained
