"""What a step of the penalty may do to a neuron, and its value to a loss."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from mhe_core import NetworkRegularizer, hyperspherical_energy, register_regularizer
from mhe_core.network._clipping import LARGEST_VALUE
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def parallel_rows(length: float = 1.0, N: int = 6, d: int = 8) -> nn.Linear:
    """A layer whose neurons nearly coincide."""
    layer = nn.Linear(d, N, bias=False)
    with torch.no_grad():
        layer.weight.copy_(length * (torch.ones(d) + 1e-3 * torch.randn(N, d)) / d**0.5)
    return layer


def gradient(model: nn.Module, factor: float = 1.0, **options: object) -> list[Tensor]:
    model = copy.deepcopy(model)
    (factor * NetworkRegularizer(model, **options)()).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def clipped_by_hand(g: Tensor, w: Tensor, clip_factor: float) -> Tensor:
    rows = []
    for g_i, w_i in zip(g.double(), w.detach().double(), strict=True):
        length = math.sqrt(sum(x * x for x in g_i.tolist()))
        limit = clip_factor * math.sqrt(sum(x * x for x in w_i.tolist()))
        rows.append(g_i * min(1.0, limit / length) if length else g_i)
    return torch.stack(rows).to(g.dtype)


class TestClippedGradient:
    @pytest.mark.parametrize("clip_factor", [0.01, 1.0, 30.0])
    def test_is_the_formula(self, clip_factor):
        layer = parallel_rows()
        with torch.no_grad():
            layer.weight[0] = 20 * torch.randn(8)  # a neuron that is not near the others
            layer.weight[1] = 0
        model = nn.Sequential(layer)
        weights = {"output_weight": 0.003}
        (exact,) = gradient(model, clip_factor=None, **weights)
        (got,) = gradient(model, clip_factor=clip_factor, **weights)
        torch.testing.assert_close(got, clipped_by_hand(exact, layer.weight, clip_factor))
        assert torch.equal(got[0], exact[0])
        assert not torch.equal(got, exact)
        assert got[1].abs().sum() == 0

    def test_keeps_its_bits_where_nothing_is_clipped(self):
        model = nn.Sequential(nn.Linear(27, 16), nn.Linear(16, 16), nn.Linear(16, 10))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 4
        for got, exact in zip(gradient(model), gradient(model, clip_factor=None), strict=True):
            assert torch.equal(got, exact)
        assert torch.equal(
            NetworkRegularizer(model)(), NetworkRegularizer(model, clip_factor=None)()
        )

    @pytest.mark.parametrize("length", [1e-12, 1e-6, 1.0])
    @pytest.mark.parametrize("factor", [2.0**16, 1 / 3, -1.0])
    def test_does_not_depend_on_what_multiplies_the_penalty(self, length, factor):
        model = nn.Sequential(parallel_rows(length))
        (plain,), (scaled,) = gradient(model), gradient(model, factor)
        torch.testing.assert_close(scaled / factor, plain, rtol=1e-5, atol=0.0)
        assert 0 < plain.norm(dim=1).max() <= length * 1.01
        assert plain.norm() > 0.5 * length

    def test_of_accumulated_batches_is_that_of_one(self):
        model = nn.Sequential(parallel_rows())
        once = gradient(model)
        regularizer = NetworkRegularizer(model)
        for _ in range(4):
            (regularizer() / 4).backward()
        torch.testing.assert_close([model[0].weight.grad], once)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_in_other_dtypes(self, dtype):
        model = nn.Sequential(parallel_rows(1e-2)).to(dtype)
        (got,) = gradient(model)
        assert got.dtype == dtype
        lengths = model[0].weight.detach().float().norm(dim=1)
        assert (got.float().norm(dim=1) <= 1.02 * lengths).all()
        assert got.abs().sum() > 0

    def test_of_a_grouped_layer_is_bounded_neuron_by_neuron(self):
        model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2))
        with torch.no_grad():
            model[0].weight.copy_(1 + 1e-4 * torch.randn_like(model[0].weight))
        (got,) = gradient(model, output=None)
        lengths = model[0].weight.detach().flatten(1).norm(dim=1)
        torch.testing.assert_close(got.flatten(1).norm(dim=1), lengths)

    def test_leaves_the_parameters_of_a_plug_in_alone(self):
        class Learned(nn.Module):
            def __init__(self, num_neurons, dim):
                super().__init__()
                self.gain = nn.Parameter(torch.ones(()))

            def forward(self, neurons):
                return self.gain * hyperspherical_energy(neurons)

        register_regularizer("test_learned", Learned)
        regularizer = NetworkRegularizer(nn.Sequential(parallel_rows()), output="test_learned")
        regularizer().backward()
        (gain,) = regularizer.parameters()
        torch.testing.assert_close(gain.grad, 10 * regularizer.terms()["0"].detach())

    def test_second_derivatives_are_those_of_the_energy_with_the_bound_as_a_constant(self):
        model = nn.Sequential(nn.Linear(6, 5, bias=False)).double()
        weight = model[0].weight
        along = torch.randn_like(weight)
        second = {}
        for clip_factor in (None, 1e-3):
            penalty = NetworkRegularizer(model, clip_factor=clip_factor)()
            (first,) = torch.autograd.grad(penalty, weight, create_graph=True)
            (product,) = torch.autograd.grad((first * along).sum(), weight)
            second[clip_factor] = (first.detach(), product)
        exact, _ = second[None]
        shrink = second[1e-3][0].norm(dim=1, keepdim=True) / exact.norm(dim=1, keepdim=True)
        penalty = NetworkRegularizer(model, clip_factor=None)()
        (first,) = torch.autograd.grad(penalty, weight, create_graph=True)
        (want,) = torch.autograd.grad((first * along * shrink).sum(), weight)
        torch.testing.assert_close(second[1e-3][1], want)

    @pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
    def test_a_bound_out_of_range_is_refused(self, value):
        with pytest.raises(ValueError, match="clip_factor as a finite number above 0, or None"):
            NetworkRegularizer(nn.Linear(4, 4), clip_factor=value)


class TestValue:
    def test_grows_with_the_logarithm_from_a_thousand_on(self):
        model = nn.Sequential(parallel_rows())
        exact = NetworkRegularizer(model, clip_factor=None)().item()
        assert exact > LARGEST_VALUE
        regularizer = NetworkRegularizer(model)
        want = LARGEST_VALUE * (1 + math.log(exact / LARGEST_VALUE))
        assert regularizer().item() == pytest.approx(want, rel=1e-5)
        with torch.no_grad():
            assert regularizer().item() == pytest.approx(want, rel=1e-5)
        assert 10 * regularizer.terms()["0"].item() == pytest.approx(exact, rel=1e-5)

    def test_leaves_digits_to_the_loss(self):
        layer = nn.Linear(8, 64, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.ones(64, 8) * 1e-4)
        penalty = NetworkRegularizer(nn.Sequential(layer))().detach()
        loss = torch.tensor(2.345)
        assert ((loss + penalty) - penalty).item() == pytest.approx(2.345, abs=1e-2)


class ResidualMLP(nn.Module):
    """A block as mixers have it: the last layer of the branch starts at zero."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(12, 16)
        self.branch = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 5)
        nn.init.zeros_(self.branch[2].weight)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.branch(x))


class LowRank(nn.Module):
    """A frozen layer and what is added to it, as LoRA has it: B starts at zero."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(12, 16).requires_grad_(False)
        self.lora_A = nn.Linear(12, 4, bias=False)
        self.lora_B = nn.Linear(4, 16, bias=False)
        self.head = nn.Linear(16, 5)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return self.head(torch.relu(self.base(x) + self.lora_B(self.lora_A(x))))


def zero_head() -> nn.Module:
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))
    nn.init.zeros_(model[2].weight)
    return model


class PositionBias(nn.Module):
    """As swinv2 has it: a small network of two inputs makes a bias."""

    def __init__(self):
        super().__init__()
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, 16, bias=False))
        self.mix = nn.Linear(12, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(torch.relu(self.mix(x) + self.cpb_mlp(x[:, :2])))


NETWORKS = {
    "plane": lambda: nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 5)),
    "zero_head": zero_head,
    "zero_branch": ResidualMLP,
    "low_rank": LowRank,
    "position_bias": PositionBias,
    "one_dimension": lambda: nn.Sequential(
        nn.Linear(12, 16), nn.Unflatten(1, (16, 1)), nn.Conv1d(16, 64, 1, groups=16), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 5),
    ),
}  # fmt: skip
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-3),
}


def train(model: nn.Module, optimizer: str, **options: object) -> tuple[float, float]:
    """Cross entropy on fixed points after some steps, and the length of all weights together."""
    torch.manual_seed(1)
    in_plane = isinstance(model, nn.Sequential) and model[0].in_features == 2
    x, y = torch.randn(20, 2 if in_plane else 12), torch.arange(20) % 5
    chosen = OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad])
    regularizer = NetworkRegularizer(model, **options)
    for _ in range(15):
        chosen.zero_grad()
        (nn.functional.cross_entropy(model(x), y) + regularizer()).backward()
        chosen.step()
    length = torch.stack([p.detach().norm() for p in model.parameters()]).norm()
    return nn.functional.cross_entropy(model(x), y).item(), length.item()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_train_as_they_do_without(network, optimizer):
    model = NETWORKS[network]()
    plain = copy.deepcopy(model)
    plain_loss, plain_length = train(plain, optimizer, hidden=None, output=None)
    loss, length = train(model, optimizer)
    assert loss <= 1.1 * plain_loss + 0.05
    assert length <= 1.25 * plain_length


@pytest.mark.parametrize("network", ["zero_head", "zero_branch", "low_rank"])
def test_without_the_bound_rows_that_start_at_zero_are_thrown_away(network):
    model = NETWORKS[network]()
    _, plain_length = train(copy.deepcopy(model), "sgd", hidden=None, output=None)
    _, length = train(model, "sgd", clip_factor=None)
    assert not length <= 2 * plain_length  # or not a number


class TestLayersThatCannotBeSpread:
    def test_are_left_out(self):
        assert list(NetworkRegularizer(NETWORKS["plane"]()).terms()) == ["2"]
        names = list(NetworkRegularizer(NETWORKS["position_bias"]()).terms())
        assert names == ["cpb_mlp.2", "mix", "head"]
        assert list(NetworkRegularizer(NETWORKS["one_dimension"]()).terms()) == ["0", "5"]

    @pytest.mark.parametrize(
        ("name", "options", "N", "d", "covered"),
        [
            ("mhe", {}, 9, 4, True),
            ("mhe", {}, 9, 3, False),
            ("mhe", {}, 4, 3, True),  # a simplex
            ("half_mhe", {}, 4, 3, False),
            ("half_mhe", {}, 3, 3, True),  # axes
            ("mhe", {"s": 1}, 9, 3, True),
            ("mhe", {"s": 1.0}, 9, 2, False),
            ("mhe", {"s": 1, "distance": "angular"}, 9, 2, False),
            ("mhe", {"s": 0}, 9, 2, True),
            ("mhe", {"s": 0}, 9, 1, False),
            ("mhe", {"s": 4}, 9, 5, False),
            ("comhe_random", {}, 9, 3, False),
            ("comhe_random", {"half_space": False}, 4, 3, True),
        ],
    )
    def test_are_those_of_one_dimension_or_of_unbounded_energy(self, name, options, N, d, covered):
        model = nn.Sequential(nn.Linear(d, N), nn.Linear(9, 5))
        regularizer = NetworkRegularizer(model, name, hidden_options=options)
        assert list(regularizer.terms()) == (["0", "1"] if covered else ["1"])

    def test_are_covered_if_they_are_asked_for(self):
        model = NETWORKS["plane"]()
        assert list(NetworkRegularizer(model, include="0").terms()) == ["0", "2"]
        for optimizer in OPTIMIZERS:
            loss, length = train(copy.deepcopy(model), optimizer, include="0")
            assert loss < 2
            assert length < 20

    def test_an_output_layer_among_them_is_said(self):
        model = nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 10))
        with pytest.warns(UserWarning, match=r"output layer '1' is left out: 10 neurons in 2 dim"):
            regularizer = NetworkRegularizer(model)
        assert list(regularizer.terms()) == ["0"]
        assert list(NetworkRegularizer(model, output_layer="1").terms()) == ["0", "1"]


class TestWeightsThatAreNotFinite:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("call", [NetworkRegularizer.__call__, NetworkRegularizer.terms])
    def test_are_named_once(self, value, call):
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4))
        regularizer = NetworkRegularizer(model)
        with torch.no_grad():
            model[1].weight[2, 3] = value
        with pytest.warns(UserWarning, match="the weights of '1' are not finite"):
            call(regularizer)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call(regularizer)

    def test_are_not_blamed_for_an_infinite_value(self, recwarn):
        regularizer = NetworkRegularizer(nn.Sequential(parallel_rows()), output_weight=1e38)
        assert not regularizer().isfinite()
        assert not recwarn.list
