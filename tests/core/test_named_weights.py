"""The weights of a network by name: which there are, what they are called, how they are read."""

from __future__ import annotations

import copy
import math
import types
from importlib.metadata import EntryPoint
from unittest import mock

import pytest
import torch
from mhe_core import NetworkRegularizer, PluginError, hyperspherical_energy, neuron_matrix
from mhe_core.network import Weight, named_weights, readers, weight_at
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def shapes(model: nn.Module, **options: object) -> dict[str, list[int]]:
    weights = named_weights(model, **options)
    return {name: list(weight.neurons().shape) for name, weight in weights.items()}


def usual(model: nn.Module) -> list[str]:
    return [name for name, weight in named_weights(model).items() if weight.usual]


class TestLayers:
    def test_attention_is_read_as_query_key_and_value(self):
        attention = nn.MultiheadAttention(6, 2)
        assert shapes(attention) == {"in_proj_weight": [3, 6, 6], "out_proj": [6, 6]}
        parts = named_weights(attention)["in_proj_weight"].neurons()
        for part, weight in zip(parts, attention.in_proj_weight.chunk(3), strict=True):
            assert torch.equal(part, weight)
        assert usual(attention) == ["in_proj_weight", "out_proj"]
        terms = NetworkRegularizer(nn.Sequential(attention, nn.Linear(6, 2))).terms()
        by_hand = [
            hyperspherical_energy(w, half_space=True) for w in attention.in_proj_weight.chunk(3)
        ]
        torch.testing.assert_close(terms["0.in_proj_weight"], torch.stack(by_hand).mean())

    def test_attention_with_separate_weights(self):
        attention = nn.MultiheadAttention(6, 2, kdim=5, vdim=4, add_bias_kv=True)
        want = {"q_proj_weight": [6, 6], "k_proj_weight": [6, 5], "v_proj_weight": [6, 4]}
        found = shapes(attention)
        assert {name: found[name] for name in want} == want
        assert usual(attention) == [*want, "out_proj"]

    @pytest.mark.parametrize(("kind", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
    def test_recurrent_layers_are_read_gate_by_gate(self, kind, gates):
        layer = getattr(nn, kind)(5, 4, num_layers=2, bidirectional=True)
        assert len(usual(layer)) == 8
        got = named_weights(layer)["weight_ih_l0_reverse"].neurons()
        assert list(got.shape) == ([gates, 4, 5] if gates > 1 else [4, 5])
        assert torch.equal(got.reshape(-1, 5), layer.weight_ih_l0_reverse)
        cell = getattr(nn, f"{kind}Cell")(5, 4)
        assert named_weights(cell)["weight_hh"].neurons().shape[-2:] == (4, 4)

    def test_an_lstms_projection_is_no_gate(self):
        layer = nn.LSTM(5, 4, proj_size=2)
        assert shapes(layer) == {
            "weight_ih_l0": [4, 4, 5],
            "weight_hh_l0": [4, 4, 2],
            "weight_hr_l0": [2, 4],
        }

    def test_a_parametrized_recurrent_weight_is_the_computed_one(self):
        layer = nn.GRU(5, 4)
        nn.utils.parametrizations.orthogonal(layer, "weight_hh_l0")
        assert set(usual(layer)) == {"weight_ih_l0", "weight_hh_l0"}
        got = named_weights(layer)["weight_hh_l0"].neurons()
        torch.testing.assert_close(got, layer.weight_hh_l0.view(3, 4, 4))

    def test_bare_parameters_are_there_to_be_included(self):
        class Vision(nn.Module):
            def __init__(self):
                super().__init__()
                self.position = nn.Parameter(torch.randn(1, 9, 6))
                self.table = nn.Parameter(torch.randn(7, 2))
                self.scale = nn.Parameter(torch.ones(6))
                self.head = nn.Linear(6, 2)

        model = Vision()
        assert shapes(model) == {"position": [9, 6], "table": [7, 2], "head": [2, 6]}
        assert usual(model) == ["head"]
        terms = NetworkRegularizer(model, include=["position"]).terms()
        want = hyperspherical_energy(model.position[0], half_space=True)
        torch.testing.assert_close(terms["position"], want)

    @pytest.mark.parametrize("transposed", [False, True])
    def test_experts_are_groups(self, transposed):
        class Experts(nn.Module):
            def __init__(self):
                super().__init__()
                self.num_experts = 4
                up, down = (4, 10, 3), (4, 3, 5)
                if transposed:
                    up, down = (4, 3, 10), (4, 5, 3)
                self.gate_up_proj = nn.Parameter(torch.randn(up))
                self.down_proj = nn.Parameter(torch.randn(down))

        model = Experts()
        assert shapes(model) == {"gate_up_proj": [4, 10, 3], "down_proj": [4, 3, 5]}
        assert usual(model) == ["gate_up_proj", "down_proj"]

    def test_weights_of_integers_have_a_problem(self):
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
        model[0].weight = nn.Parameter(torch.ones(2, 3, dtype=torch.int8), requires_grad=False)
        weight = named_weights(model)["0"]
        with pytest.raises(TypeError, match=r"of torch\.int8.*dequantize"):
            weight.neurons()
        assert list(NetworkRegularizer(model).terms()) == ["1"]

    def test_sparse_and_eight_bit_weights_are_read_by_value(self):
        layer = nn.Linear(4, 3)
        dense = layer.weight.detach().clone()
        layer.weight = nn.Parameter(dense.to_sparse())
        assert torch.equal(neuron_matrix(layer), dense)
        layer.weight = nn.Parameter(dense.to(torch.float8_e4m3fn), requires_grad=False)
        torch.testing.assert_close(neuron_matrix(layer), dense, rtol=0.1, atol=0.01)


class TestTransformers:
    def test_conv1d_has_its_neurons_as_columns(self):
        pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
        layer = pytorch_utils.Conv1D(12, 4)
        assert torch.equal(neuron_matrix(layer), layer.weight.T)
        assert usual(layer) == [""]
        split = named_weights(nn.ModuleDict({"c_attn": layer}), split={"*attn": 3})
        assert torch.equal(split["c_attn[2]"].neurons(), layer.weight.T[8:])

    @pytest.mark.parametrize(("kind", "router"), [("mixtral", "gate"), ("gpt_oss", "router")])
    def test_experts_are_covered_however_they_are_stored(self, kind, router):
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1}
        sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 11}
        config = transformers.AutoConfig.for_model(kind, **sizes, num_local_experts=3, head_dim=4)
        model = transformers.AutoModelForCausalLM.from_config(config)
        found = shapes(model)
        covered = [name for name in usual(model) if "experts" in name]
        assert sum(math.prod(found[name]) for name in covered) == 3 * (12 * 8 + 8 * 6)
        layer = "model.layers.0.mlp"
        if f"{layer}.experts.gate_up_proj" not in found:
            return  # transformers 4 has Mixtral's one by one
        assert found[f"{layer}.experts.gate_up_proj"] == [3, 12, 8]
        assert found[f"{layer}.experts.down_proj"] == [3, 8, 6]
        left_out = set(found) - set(usual(model))
        assert left_out == {"model.embed_tokens", f"{layer}.{router}"}


class TestSplit:
    def test_into_equal_blocks_or_given_sizes(self):
        model = nn.ModuleDict({"qkv": nn.Linear(4, 12), "kv": nn.Linear(4, 6)})
        split = {"qkv": 3, "kv": (2, 4)}
        assert shapes(model, split=split) == {
            "qkv[0]": [4, 4],
            "qkv[1]": [4, 4],
            "qkv[2]": [4, 4],
            "kv[0]": [2, 4],
            "kv[1]": [4, 4],
        }
        weights = named_weights(model, split=split)
        assert torch.equal(weights["qkv[1]"].neurons(), model["qkv"].weight[4:8])
        assert torch.equal(weights["kv[1]"].neurons(), model["kv"].weight[2:])
        for name, weight in weights.items():
            again = weight_at(model, name, split=split)
            assert torch.equal(again.neurons(), weight.neurons())
            assert again.identity == weight.identity
        assert len({weight.identity for weight in weights.values()}) == 5

    @pytest.mark.parametrize("sizes", [5, 0, (6, 7), (12, 0)])
    def test_blocks_that_do_not_fit_are_refused(self, sizes):
        with pytest.raises(ValueError, match="expected split to cut the 12 rows of 'qkv'"):
            named_weights(nn.ModuleDict({"qkv": nn.Linear(4, 12)}), split={"q*": sizes})

    def test_a_pattern_that_fits_nothing_is_refused(self):
        with pytest.raises(ValueError, match=r"split to fit one of \['0'\], got 'qkv'"):
            named_weights(nn.Sequential(nn.Linear(4, 12)), split={"qkv": 3})


class TestNames:
    def test_are_those_inside_all_wrappers(self):
        class Fabric(nn.Module):
            def __init__(self, module):
                super().__init__()
                self._forward_module = module
                self._original_module = module

        block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        model = nn.Sequential(block, nn.Linear(4, 2))
        names = list(named_weights(model))
        assert names == ["0.0", "1"]
        inner = nn.Sequential(
            checkpoint_wrapper(torch.compile(copy.deepcopy(block), backend="eager")), model[1]
        )
        for wrapped in (
            nn.DataParallel(model),
            torch.compile(nn.DataParallel(model), backend="eager"),
            Fabric(torch.compile(model, backend="eager")),
            torch.optim.swa_utils.AveragedModel(model),
            inner,
        ):
            assert list(named_weights(wrapped)) == names
            for name in names:
                got = weight_at(wrapped, name).neurons()
                assert torch.equal(got, weight_at(model, name).neurons())
            assert list(NetworkRegularizer(wrapped, exclude="0.*").terms()) == ["1"]

    def test_a_weight_that_is_not_there_is_an_error(self):
        model = nn.Sequential(nn.Linear(4, 4))
        for name in ("1", "0.bias", "0.weight", "0[0]"):
            with pytest.raises(KeyError, match=name.replace("[", r"\[")):
                weight_at(model, name)

    def test_tied_weights_have_one_identity(self):
        model = nn.ModuleDict({"words": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
        model["head"].weight = model["words"].weight
        weights = named_weights(model)
        assert weights["words"].identity == weights["head"].identity
        assert list(NetworkRegularizer(model, include="words").terms()) == ["head"]

    def test_of_a_timm_model_are_its_modules(self):
        timm = pytest.importorskip("timm")
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=5)
        found = shapes(model, split={"*.qkv": 3})
        assert [name for name in found if "qkv" in name] == [
            f"blocks.0.attn.qkv[{k}]" for k in range(3)
        ]
        assert found["blocks.0.attn.qkv[0]"] == [192, 192]
        assert found["pos_embed"] == [5, 192]


class TestReadersOfOthers:
    @pytest.fixture
    def install(self, monkeypatch):
        """Offer a reader as an installed distribution would."""

        def install(reader):
            module = types.ModuleType("test_reader_module")
            module.read = reader
            monkeypatch.setitem(__import__("sys").modules, "test_reader_module", module)
            point = EntryPoint("test_layers", "test_reader_module:read", readers.GROUP)
            found = mock.Mock(return_value=[point, point])  # twice, as of an editable install
            monkeypatch.setattr("mhe_core.entry_points.entry_points", found)
            readers.installed_readers.cache_clear()

        yield install
        monkeypatch.undo()
        readers.installed_readers.cache_clear()

    def test_are_asked_first(self, install):
        class Complex(nn.Module):
            def __init__(self):
                super().__init__()
                self.real = nn.Linear(3, 4)
                self.imaginary = nn.Linear(3, 4)

        def read(module):
            if not isinstance(module, Complex):
                return None
            parts = (module.real.weight, module.imaginary.weight)
            weight = Weight(
                module,
                parts,
                read=lambda: torch.cat(parts, 1),
                usual=True,
                replaces=(module.real, module.imaginary),
            )
            return {"weight": weight}

        model = nn.Sequential(Complex(), nn.Linear(4, 2))
        assert list(named_weights(model)) == ["0.real", "0.imaginary", "1"]
        install(read)
        assert shapes(model) == {"0": [4, 6], "1": [2, 4]}
        assert list(NetworkRegularizer(model).terms()) == ["0", "1"]
        assert torch.equal(neuron_matrix(model[0])[:, 3:], model[0].imaginary.weight)

    @pytest.mark.parametrize(
        ("reader", "said"), [(lambda module: [module], "expected a mapping"), (3, "a callable")]
    )
    def test_that_return_or_are_something_else_are_named(self, install, reader, said):
        install(reader)
        with pytest.raises(PluginError, match=f"weight reader 'test_layers'.*{said}"):
            named_weights(nn.Linear(3, 2))
