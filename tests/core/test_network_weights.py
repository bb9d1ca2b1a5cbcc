"""Regularizing whole networks: computed weights, wrapped models, regularizers with a state."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from mhe_core import (
    NetworkRegularizer,
    Regularizer,
    hyperspherical_energy,
    neuron_matrix,
    register_regularizer,
)
from support.forks import run_processes
from torch import nn
from torch.nn.utils import parametrizations


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class TestParametrizedWeights:
    def test_spectral_norm_is_read_from_its_original(self, small_network):
        model = small_network()
        plain = copy.deepcopy(model)
        for layer in (model.conv, model.head):
            parametrizations.spectral_norm(layer)
        model.train()
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        regularizer = NetworkRegularizer(model)
        torch.testing.assert_close(regularizer(), NetworkRegularizer(plain)())
        regularizer.update(0.1)
        regularizer().backward()
        u = "conv.parametrizations.weight.0._u"
        for name, buffer in model.named_buffers():  # a power iteration would move _u and _v
            assert torch.equal(buffer, buffers[name])
        assert model.conv.parametrizations.weight.original.grad.abs().sum() > 0
        _ = model.conv.weight
        assert not torch.equal(model.conv.parametrizations.weight[0]._u, buffers[u])

    def test_old_spectral_norm_is_read_from_its_original(self, small_network):
        model = small_network()
        want = NetworkRegularizer(model)().detach()
        for layer in (model.conv, model.head):
            nn.utils.spectral_norm(layer)
        u = model.conv.weight_u.clone()
        regularizer = NetworkRegularizer(model)
        model(torch.randn(2, 3, 8, 8))
        assert not torch.equal(model.conv.weight_u, u)
        u = model.conv.weight_u.clone()
        energy = regularizer()
        energy.backward()
        assert torch.equal(model.conv.weight_u, u)
        torch.testing.assert_close(energy.detach(), want)
        assert model.conv.weight_orig.grad.abs().sum() > 0

    @pytest.mark.parametrize("kind", ["new", "old"])
    def test_weight_norm_is_read_from_its_direction(self, small_network, kind):
        model = small_network()
        want = NetworkRegularizer(model)().detach()
        directions, lengths = [], []
        for layer in (model.conv, model.head):
            v, g = weight_normed(layer, kind)
            with torch.no_grad():
                g *= torch.rand_like(g) + 0.5
            directions.append(v)
            lengths.append(g)
        regularizer = NetworkRegularizer(model)
        regularizer().backward()
        torch.testing.assert_close(regularizer().detach(), want)
        assert all(v.grad.abs().sum() > 0 for v in directions)
        assert all(g.grad is None for g in lengths)
        directions[0].requires_grad_(False)
        assert list(regularizer.terms()) == ["head"]

    @pytest.mark.parametrize("kind", ["new", "old"])
    def test_weight_norm_across_neurons_is_computed(self, kind):
        layer = nn.ConvTranspose1d(3, 4, 2)
        _, g = weight_normed(layer, kind)  # by input channel, as is the default
        with torch.no_grad():
            g *= torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
        layer(torch.randn(1, 3, 5))
        torch.testing.assert_close(neuron_matrix(layer), layer.weight.transpose(0, 1).flatten(1))
        regularizer = NetworkRegularizer(nn.Sequential(layer), output=None)
        with torch.no_grad():
            assert list(regularizer.terms()) == ["0"]
        regularizer().backward()
        assert g.grad.abs().sum() > 0


def weight_normed(layer: nn.Module, kind: str) -> tuple[nn.Parameter, nn.Parameter]:
    """Apply weight norm; the direction and the lengths."""
    if kind == "new":
        parametrizations.weight_norm(layer)
        lengths, direction = layer.parametrizations.weight.parameters()
        return direction, lengths
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer)
    return layer.weight_v, layer.weight_g


class TestWrappers:
    def test_compiled(self, small_network):
        model = small_network()
        compiled = torch.compile(model, backend="eager")
        compiled(torch.randn(2, 3, 8, 8))
        regularizer = NetworkRegularizer(compiled, exclude="conv")
        assert list(regularizer.terms()) == ["head"]
        torch.testing.assert_close(regularizer(), 10 * hyperspherical_energy(model.head.weight))

    def test_several_processes(self, tmp_path):
        script = tmp_path / "train.py"
        script.write_text(PARALLEL)
        run_processes(2, script, tmp_path)
        first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
        assert first["names"] == second["names"] == ["0", "2"]
        # The gradient of the mean of both losses, each with the same penalty.
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
        model.load_state_dict(first["weights"])
        losses = [model(torch.full((2, 5), 1.0 + rank)).square().mean() for rank in range(2)]
        (sum(losses) / 2 + NetworkRegularizer(model)()).backward()
        for parameter, *got in zip(
            model.parameters(), first["gradients"], second["gradients"], strict=True
        ):
            for gradient in got:
                torch.testing.assert_close(gradient, parameter.grad)


PARALLEL = """
import sys
import torch
from mhe_core import NetworkRegularizer
from torch import nn

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
parallel = nn.parallel.DistributedDataParallel(model)
wrapped = torch.compile(parallel, backend="eager") if rank == 0 else parallel
regularizer = NetworkRegularizer(wrapped)
x = torch.full((2, 5), 1.0 + rank)
loss = parallel(x).square().mean() + regularizer()
loss.backward()
result = {
    "names": list(regularizer.terms()),
    "weights": model.state_dict(),
    "gradients": [p.grad for p in model.parameters()],
}
torch.save(result, f"{sys.argv[1]}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


class Projected(Regularizer):
    """A regularizer with a state: it looks at one plane, and turns it at each update."""

    def __init__(self, num_neurons, dim):
        super().__init__(num_neurons, dim)
        self.register_buffer("plane", torch.randn(dim, 2))
        self.updates = []

    def forward(self, neurons):
        assert neurons.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        return hyperspherical_energy(neurons @ self.plane).mean()

    def update(self, neurons, lr):
        assert neurons.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        self.updates.append((neurons.shape, neurons.requires_grad, lr))
        self.plane.copy_(self.plane.roll(1, 0))


class Minimal(nn.Module):
    """A third party's, which knows of [N, d] only and has no update."""

    def __init__(self, num_neurons, dim, gain=1.0):
        super().__init__()
        self.sizes = (num_neurons, dim)
        self.gain = gain

    def forward(self, neurons):
        assert neurons.shape == self.sizes
        return self.gain * neurons.square().sum()


@pytest.fixture(scope="module", autouse=True)
def _plugins():
    register_regularizer("test_projected", Projected)
    register_regularizer("test_minimal", Minimal)
    register_regularizer("test_vector", lambda num_neurons, dim: nn.Flatten())


class TestRegularizersOfOnesOwn:
    def test_the_model_is_not_owned(self, small_network):
        model = small_network()
        regularizer = NetworkRegularizer(model, "test_projected")
        assert list(regularizer.parameters()) == []
        assert model not in list(regularizer.modules())
        state = regularizer.state_dict()
        assert len(state) == 1
        regularizer.eval()
        assert model.training

    def test_state_is_saved_and_restored(self, small_network):
        model = small_network()
        first = NetworkRegularizer(model, "test_projected")
        second = NetworkRegularizer(model, "test_projected")
        assert first() != second()
        first.update(0.1)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert first() == second()
        deeper = NetworkRegularizer(small_network(deep=nn.Conv2d(8, 8, 1)), "test_projected")
        with pytest.raises(RuntimeError, match=r"Missing key.*deep"):
            deeper.load_state_dict(first.state_dict())

    def test_update_comes_with_the_neurons_and_the_learning_rate(self, small_network):
        model = small_network(grouped=nn.Conv2d(8, 8, 3, groups=2))
        regularizer = NetworkRegularizer(model.bfloat16(), "test_projected", hidden_weight=0.5)
        made = [m for m in regularizer.modules() if isinstance(m, Projected)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            regularizer.update(0.1)
            regularizer.update(0.01)
            regularizer()
        shapes = [(8, 27), (2, 4, 36)]
        assert [m.updates for m in made] == [
            [(shape, False, 0.1), (shape, False, 0.01)] for shape in shapes
        ]
        model.conv.weight.requires_grad_(False)
        regularizer.update(0.1)
        assert [len(m.updates) for m in made] == [2, 3]

    def test_a_third_partys_is_called_group_by_group(self, small_network):
        model = small_network(grouped=nn.Conv2d(8, 8, 3, groups=2))
        options = {"hidden_options": {"gain": 3.0}}
        regularizer = NetworkRegularizer(model, "test_minimal", **options)
        torch.testing.assert_close(
            regularizer.terms()["grouped"], 3 * model.grouped.weight.square().sum() / 2
        )
        regularizer.update(0.1)

    def test_an_energy_that_is_no_scalar_is_refused(self, small_network):
        regularizer = NetworkRegularizer(small_network(), "test_vector")
        with pytest.raises(ValueError, match=r"scalar.*layer 'conv', got \[\[8, 27\]\]"):
            regularizer()

    def test_moves_with_to(self, small_network):
        regularizer = NetworkRegularizer(small_network(), "test_projected").to("meta")
        assert all(b.device.type == "meta" for b in regularizer.buffers())
        on_meta = NetworkRegularizer(small_network().to("meta"), "test_projected")
        assert all(b.device.type == "meta" for b in on_meta.buffers())

    def test_a_copy_goes_with_the_copied_model(self, small_network):
        model = small_network()
        both = copy.deepcopy({"model": model, "regularizer": NetworkRegularizer(model)})
        nn.init.zeros_(both["model"].head.weight)
        assert both["regularizer"].terms()["head"] == 0.5

    def test_an_unknown_name_is_an_error_when_it_is_made(self, small_network):
        with pytest.raises(ValueError, match="half_mhe"):
            NetworkRegularizer(small_network(), "half_mh")
