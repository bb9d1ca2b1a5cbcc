"""Regularizing whole networks: which layers count, and how much."""

from __future__ import annotations

import copy

import pytest
import torch
from mhe_core import (
    NetworkRegularizer,
    hyperspherical_energy,
    neuron_matrix,
)
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def half(w: Tensor, **options: object) -> Tensor:
    return hyperspherical_energy(w, half_space=True, **options)


class TestNeuronMatrix:
    @pytest.mark.parametrize(
        ("layer", "shape"),
        [
            (nn.Linear(5, 3), (3, 5)),
            (nn.Conv1d(4, 6, 5), (6, 20)),
            (nn.Conv2d(4, 6, (3, 2)), (6, 24)),
            (nn.Conv3d(2, 3, 2), (3, 16)),
            (nn.Embedding(7, 3), (7, 3)),
        ],
    )
    def test_rows_are_the_weights_rows(self, layer, shape):
        neurons = neuron_matrix(layer)
        assert torch.equal(neurons, layer.weight.reshape(shape))
        neurons.sum().backward()
        assert torch.equal(layer.weight.grad, torch.ones_like(layer.weight))
        assert neurons.data_ptr() == layer.weight.data_ptr()  # a view

    @pytest.mark.parametrize("groups", [1, 2])
    @pytest.mark.parametrize("dim", [1, 2, 3])
    def test_neurons_are_what_an_output_channel_depends_on(self, dim, groups):
        x = torch.randn(1, 4, *[4] * dim)
        for name in (f"Conv{dim}d", f"ConvTranspose{dim}d"):
            layer = getattr(nn, name)(4, 6, 2, groups=groups, bias=False)
            neurons = neuron_matrix(layer)
            grouped = neurons if groups > 1 else neurons.unsqueeze(0)
            assert grouped.shape == (groups, 6 // groups, 4 // groups * 2**dim)
            assert neurons.ndim == (2 if groups == 1 else 3)
            for group in range(groups):
                for k in range(6 // groups):
                    channel = group * (6 // groups) + k
                    layer.zero_grad()
                    layer(x)[:, channel].sum().backward()
                    used = layer.weight[layer.weight.grad != 0]
                    assert sorted(used.tolist()) == sorted(grouped[group, k].tolist())

    @pytest.mark.parametrize("module", [nn.BatchNorm2d(3), nn.ReLU(), nn.Sequential()])
    def test_modules_without_neurons_are_refused(self, module):
        with pytest.raises(TypeError, match=f"two dimensions, got {type(module).__name__}"):
            neuron_matrix(module)


class TestValue:
    def test_is_the_weighted_sum_of_the_layers_energies(self, small_network):
        model = small_network(deep=nn.Conv2d(8, 8, 3, padding=1))
        regularizer = NetworkRegularizer(model)
        energies = {
            "conv": half(model.conv.weight.flatten(1)),
            "deep": half(model.deep.weight.flatten(1)),
            "head": hyperspherical_energy(model.head.weight),
        }
        terms = regularizer.terms()
        assert list(terms) == list(energies)
        for name, energy in energies.items():
            torch.testing.assert_close(terms[name], energy)
        want = energies["conv"] + energies["deep"] + 10 * energies["head"]
        torch.testing.assert_close(regularizer(), want)

    def test_gradient_is_that_of_the_sum_written_by_hand(self, small_network):
        model = small_network()
        other = copy.deepcopy(model)
        options = {"hidden_weight": 0.5, "output_weight": 2.0, "hidden_options": {"s": 1}}
        regularizer = NetworkRegularizer(
            model, **options, output_options={"s": 0, "distance": "angular"}, clip_factor=None
        )
        x = torch.randn(2, 3, 8, 8)
        (model(x).square().mean() + regularizer()).backward()
        by_hand = 0.5 * half(other.conv.weight.flatten(1), s=1)
        by_hand = by_hand + 2 * hyperspherical_energy(other.head.weight, s=0, distance="angular")
        (other(x).square().mean() + by_hand).backward()
        for got, want in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(got.grad, want.grad)

    def test_weights_are_read_anew_at_each_call(self, small_network):
        model = small_network()
        regularizer = NetworkRegularizer(model)
        other = small_network()
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(regularizer(), NetworkRegularizer(other)())
        model.head = nn.Linear(8, 3)
        torch.testing.assert_close(
            regularizer.terms()["head"], hyperspherical_energy(model.head.weight)
        )

    def test_minimising_it_spreads_the_neurons(self):
        model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(2, 3, bias=False))
        regularizer = NetworkRegularizer(model, hidden="mhe", hidden_options={"s": 1})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(500):
            optimizer.zero_grad()
            regularizer().backward()
            optimizer.step()
        terms = regularizer.terms()
        assert terms["0"].item() == pytest.approx((3 / 8) ** 0.5, rel=1e-4)  # tetrahedron
        assert terms["1"].item() == pytest.approx(1 / 3, rel=1e-4)  # triangle

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_is_computed_in_float32_at_least(self, small_network, dtype):
        model = small_network()
        exact = NetworkRegularizer(model)()
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(NetworkRegularizer(model)(), exact)
        low = model.to(dtype)
        energy = NetworkRegularizer(low)()
        assert energy.dtype == torch.float32
        torch.testing.assert_close(energy, NetworkRegularizer(copy.deepcopy(low).float())())
        energy.backward()
        assert low.conv.weight.grad.dtype == dtype
        assert NetworkRegularizer(small_network().double())().dtype == torch.float64

    def test_without_gradient(self, small_network):
        regularizer = NetworkRegularizer(small_network())
        with torch.no_grad():
            assert not regularizer().requires_grad
        with torch.inference_mode():
            assert regularizer() == regularizer()


class TestWhichLayers:
    def test_either_group_can_be_left_out(self, small_network):
        model = small_network()
        assert list(NetworkRegularizer(model, output=None).terms()) == ["conv"]
        assert list(NetworkRegularizer(model, hidden=None).terms()) == ["head"]
        nothing = NetworkRegularizer(model, hidden=None, output=None)
        assert nothing.terms() == {}
        assert nothing() == 0

    def test_layers_without_a_pair_of_neurons_are_left_out(self):
        model = nn.Sequential(
            nn.Conv2d(4, 4, 3, groups=4),  # depthwise: one neuron a group
            nn.Conv2d(4, 8, 3, groups=4),  # two neurons a group
            nn.Linear(8, 1),
        )
        regularizer = NetworkRegularizer(model)
        assert list(regularizer.terms()) == ["1"]
        groups = model[1].weight.reshape(4, 2, 9)
        torch.testing.assert_close(regularizer(), torch.stack([half(g) for g in groups]).mean())

    def test_transposed_layers_count_by_output_channel(self):
        model = nn.Sequential(nn.ConvTranspose2d(6, 4, 3, groups=2), nn.Linear(4, 2))
        weight = model[0].weight
        by_group = [half(w.transpose(0, 1).flatten(1)) for w in (weight[:3], weight[3:])]
        want = torch.stack(by_group).mean()
        torch.testing.assert_close(NetworkRegularizer(model).terms()["0"], want)

    def test_a_tied_weight_counts_once(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        model[2].weight = model[3].weight
        terms = NetworkRegularizer(model).terms()
        assert list(terms) == ["0", "3"]  # the output layer's counts there
        torch.testing.assert_close(terms["3"], hyperspherical_energy(model[3].weight))
        assert list(NetworkRegularizer(model, exclude="0").terms()) == ["1", "3"]

    def test_a_module_used_twice_counts_once(self):
        layer = nn.Linear(4, 4)
        assert list(NetworkRegularizer(nn.Sequential(layer, layer), "mhe").terms()) == ["0"]

    def test_frozen_layers_are_left_out_while_they_are_frozen(self, small_network):
        model = small_network()
        regularizer = NetworkRegularizer(model)
        model.conv.weight.requires_grad_(False)
        assert list(regularizer.terms()) == ["head"]
        torch.testing.assert_close(regularizer(), 10 * hyperspherical_energy(model.head.weight))
        model.requires_grad_(False)
        assert regularizer() == 0
        model.requires_grad_(True)
        assert list(regularizer.terms()) == ["conv", "head"]

    def test_excluded_layers_by_name_or_pattern(self):
        blocks = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
        model = nn.ModuleDict({"stem": nn.Linear(4, 4), "blocks": blocks, "head": nn.Linear(4, 2)})
        for exclude, left in [
            ("blocks.*", ["stem", "head"]),
            (["stem", "blocks.a"], ["blocks.b", "head"]),
            (["head"], ["stem", "blocks.a", "blocks.b"]),
        ]:
            assert list(NetworkRegularizer(model, exclude=exclude).terms()) == left
        with pytest.raises(ValueError, match=r"exclude.*'stem', 'blocks.a'.*got 'blok\*'"):
            NetworkRegularizer(model, exclude=["stem", "blok*"])

    def test_embeddings_and_other_modules_on_request(self):
        class Centres(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.randn(5, 3))

        model = nn.ModuleDict(
            {"words": nn.Embedding(9, 4), "centres": Centres(), "head": nn.Linear(4, 2)}
        )
        assert list(NetworkRegularizer(model).terms()) == ["head"]
        terms = NetworkRegularizer(model, include=["words", "cent*"]).terms()
        assert list(terms) == ["words", "centres", "head"]
        torch.testing.assert_close(terms["words"], half(model["words"].weight))
        with pytest.raises(ValueError, match=r"include.*\['words', 'centres', 'head'\].*'word'"):
            NetworkRegularizer(model, include=["word"])
        terms = NetworkRegularizer(model, output_layer="centres").terms()
        assert list(terms) == ["head", "centres"]
        torch.testing.assert_close(terms["centres"], hyperspherical_energy(model["centres"].weight))

    @pytest.mark.parametrize("name", ["hidden_weight", "output_weight"])
    @pytest.mark.parametrize("value", [-1, float("inf"), float("nan")])
    def test_weights_out_of_range_are_refused(self, small_network, name, value):
        with pytest.raises(ValueError, match=f"{name} as a finite number ≥ 0, got {value}"):
            NetworkRegularizer(small_network(), **{name: value})

    def test_layers_may_be_called_anything(self):
        model = nn.Module()
        for name in ("values", "keys", "a/b", "a[0]"):
            model.add_module(name, nn.Linear(3, 3))
        assert list(NetworkRegularizer(model).terms()) == ["values", "keys", "a/b", "a[0]"]
        assert list(NetworkRegularizer(model, exclude="a[0]").terms()) == ["values", "keys", "a/b"]
        assert list(NetworkRegularizer(nn.Linear(3, 3)).terms()) == [""]


class TestOutputLayer:
    def test_last_linear_layer_or_1x1_convolution(self):
        convolutional = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 3))
        assert output_names(convolutional) == ["1"]
        assert output_names(nn.Sequential(nn.Conv1d(2, 3, 1), nn.Linear(3, 3), nn.ReLU())) == ["1"]

    def test_is_no_hidden_layer_even_if_left_out_or_too_small(self):
        discriminator = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        assert list(NetworkRegularizer(discriminator).terms()) == ["0"]
        torch.testing.assert_close(
            NetworkRegularizer(discriminator)(), half(discriminator[0].weight)
        )

    def test_by_name(self, small_network):
        model = small_network()
        terms = NetworkRegularizer(model, output_layer="conv", hidden=None).terms()
        torch.testing.assert_close(
            terms["conv"], hyperspherical_energy(model.conv.weight.flatten(1))
        )
        for name in ("fc", "pool", "fc*"):
            with pytest.raises(ValueError, match=r"output_layer.*\['conv', 'head'\]"):
                NetworkRegularizer(model, output_layer=name)

    def test_none_found_lists_the_candidates(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Embedding(3, 3))
        with pytest.raises(ValueError, match=r"output_layer, one of \['0', '1'\]"):
            NetworkRegularizer(model)
        assert list(NetworkRegularizer(model, output=None).terms()) == ["0"]
        assert list(NetworkRegularizer(model, output_layer="0").terms()) == ["0"]

    def test_get_classifier_comes_first(self):
        class Model(nn.Sequential):
            def get_classifier(self):
                return self.classifier

        model = Model()
        model.add_module("classifier", nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)))
        model.add_module("projector", nn.Linear(4, 4))
        assert output_names(model) == ["classifier.1"]
        model.classifier = nn.Identity()  # as timm does for no classes
        with pytest.raises(ValueError, match=r"get_classifier\(\).*\['projector'\]"):
            NetworkRegularizer(model)

    def test_every_head_of_several_is_an_output_layer(self):
        class Distilled(nn.Sequential):
            def get_classifier(self):
                return self.head, self.head_dist

        model = Distilled()
        model.add_module("body", nn.Linear(4, 4))
        model.add_module("head_dist", nn.Linear(4, 3))
        model.add_module("head", nn.Linear(4, 3))
        assert output_names(model) == ["head_dist", "head"]
        energy = {
            name: hyperspherical_energy(model.get_submodule(name).weight).item()
            for name in ("head", "head_dist")
        }
        total = NetworkRegularizer(model, hidden=None, output_weight=2.0)()
        assert total.item() == pytest.approx(2 * sum(energy.values()))

    def test_of_a_timm_model(self):
        timm = pytest.importorskip("timm")
        model = timm.create_model("resnet10t", num_classes=5)
        regularizer = NetworkRegularizer(model)
        terms = regularizer.terms()
        torch.testing.assert_close(terms["fc"], hyperspherical_energy(model.fc.weight))
        convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
        assert list(terms) == [*convolutions, "fc"]
        regularizer().backward()
        assert all(model.get_submodule(n).weight.grad.abs().sum() > 0 for n in terms)


def output_names(model: nn.Module) -> list[str]:
    return list(NetworkRegularizer(model, hidden=None).terms())


def test_the_defaults_are_cores_whatever_others_are_called(clash):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    half_mhe, mhe = NetworkRegularizer(model).regularizers.values()
    assert (type(half_mhe).__name__, type(mhe).__name__) == ("HalfSpaceMHE", "MHE")
