"""Layer by layer: patterns, regularizers, weights that follow a schedule, and what loggers get."""

from __future__ import annotations

import copy
import functools
import pickle
import re

import pytest
import torch
from mhe_core import MHE, HalfSpaceMHE, NetworkRegularizer, hyperspherical_energy
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj((q @ k.mT).softmax(-1) @ v)


class Network(nn.Module):
    """Words, a convolution, two blocks and a head."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.mix = nn.Conv1d(8, 8, 3, padding=1)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 10, bias=False)


def half(w: Tensor, **options: object) -> Tensor:
    return hyperspherical_energy(w.flatten(1), half_space=True, **options)


def ramp(step: int) -> float:
    return 0.5 * step


class TestPatterns:
    @pytest.mark.parametrize(
        "pattern",
        ["blocks.*", re.compile(r"blocks\.\d\.(qkv|proj)"), (re.compile(".*qkv"), "*.proj")],
    )
    def test_exclude(self, pattern):
        assert NetworkRegularizer(Network(), exclude=pattern).layers == ["mix", "head"]

    def test_a_regular_expression_matches_the_whole_name(self):
        regularizer = NetworkRegularizer(Network(), exclude=[re.compile("mix|blocks.0.qkv")])
        assert regularizer.layers == ["blocks.0.proj", "blocks.1.qkv", "blocks.1.proj", "head"]
        with pytest.raises(ValueError, match="expected exclude to fit one of"):
            NetworkRegularizer(Network(), exclude=re.compile("block"))

    def test_a_kind_of_module(self):
        regularizer = NetworkRegularizer(Network(), include=nn.Embedding, exclude=nn.Conv1d)
        assert regularizer.layers[:2] == ["words", "blocks.0.qkv"]
        with pytest.raises(ValueError, match=r"exclude to fit one of .*GRU"):
            NetworkRegularizer(Network(), exclude=[nn.GRU])

    def test_the_output_layer(self):
        regularizer = NetworkRegularizer(Network(), output_layer=re.compile(r"blocks\.1\.\w+"))
        assert regularizer.output_layers == ["blocks.1.qkv", "blocks.1.proj"]

    @pytest.mark.parametrize("pattern", [3, int, nn.Linear(2, 2)])
    def test_nothing_else(self, pattern):
        with pytest.raises(TypeError, match="a name, a pattern, a compiled regular expression"):
            NetworkRegularizer(Network(), exclude=[pattern])


class TestRules:
    def test_the_first_that_fits_changes_what_the_role_says(self):
        model = Network()
        regularizer = NetworkRegularizer(
            model,
            hidden_options={"s": 1},
            rules={
                "blocks.0.*": {"weight": 0.1, "regularizer": "mhe", "distance": "angular"},
                re.compile(r".*\.qkv"): {"weight": 3},
                nn.Conv1d: {"s": 0},
                "blocks.1.proj": {"regularizer": None},
                "head": {"weight": 2.0},
            },
        )
        block, other = model.blocks
        angular = functools.partial(hyperspherical_energy, distance="angular")
        want = 0.1 * angular(block.qkv.weight) + 0.1 * angular(block.proj.weight)
        want = want + 3 * half(other.qkv.weight, s=1) + half(model.mix.weight, s=0)
        want = want + 2 * hyperspherical_energy(model.head.weight)
        torch.testing.assert_close(regularizer(), want)
        roles = {role.name: role for role in regularizer.describe()}
        assert roles["blocks.1.proj.weight"].reason == (
            "'blocks.1.proj': rule 'blocks.1.proj': regularizer=None"
        )

    def test_the_gradient_is_that_of_the_sum(self):
        model = Network()
        other = copy.deepcopy(model)
        rules = {"head": {"regularizer": None}, "*": {"weight": 0.1}}
        NetworkRegularizer(model, rules=rules, clip_factor=None)().backward()
        weights = [
            other.mix.weight,
            *(w for b in other.blocks for w in (b.qkv.weight, b.proj.weight)),
        ]
        sum(0.1 * half(w) for w in weights).backward()
        for got, want in zip(model.parameters(), other.parameters(), strict=True):
            assert (got.grad is None) == (want.grad is None)
            if got.grad is not None:
                torch.testing.assert_close(got.grad, want.grad)

    def test_can_name_a_regularizer_where_the_roles_have_none(self):
        rules = {"blocks.*.proj": {"regularizer": "mhe", "weight": 1}}
        regularizer = NetworkRegularizer(Network(), None, None, rules=rules)
        assert regularizer.layers == ["blocks.0.proj", "blocks.1.proj"]
        with pytest.raises(ValueError, match=r"name a regularizer for \['blocks.*as hidden=None"):
            NetworkRegularizer(Network(), None, None, rules={"*.qkv": {"weight": 1}})
        rules = {"*": {"weight": 2.0}}  # which fits the hidden layers, too
        assert NetworkRegularizer(Network(), None, rules=rules).layers == ["head"]

    @pytest.mark.parametrize(
        ("rules", "error", "message"),
        [
            ({"nowhere": {}}, ValueError, r"rules to fit one of \['mix'.*'nowhere'"),
            ({"words": {}}, ValueError, "rules to fit one of"),  # not covered without include
            ({"mix": 3}, TypeError, "settings in rule 'mix', got 3"),
            ([("mix", {})], TypeError, "settings by pattern, got list"),
            ({"mix": {"weight": -1}}, ValueError, "weight of rule 'mix' as a finite number ≥ 0"),
            ({"mix": {"weight": "1"}}, TypeError, "weight of rule 'mix' as a number, got str"),
            ({"mix": {"power": 2}}, TypeError, "half_mhe.*'power'"),
            ({nn.Linear: {"weight": lambda _: -1.0}}, ValueError, "rule Linear at step 0"),
        ],
    )
    def test_what_is_refused(self, rules, error, message):
        with pytest.raises(error, match=message):
            NetworkRegularizer(Network(), rules=rules)


class Spread(nn.Module):
    """A third party's regularizer."""

    def __init__(self, num_neurons, dim, *, power=2.0):
        super().__init__()
        self.sizes, self.power = (num_neurons, dim), power

    def forward(self, neurons):
        u = nn.functional.normalize(neurons, dim=-1)
        return (u @ u.mT).fill_diagonal_(0).abs().pow(self.power).mean()


class TestRegularizers:
    def test_a_class_or_factory(self):
        model = Network()
        factory = functools.partial(HalfSpaceMHE, s=1)
        regularizer = NetworkRegularizer(
            model, Spread, factory, hidden_options={"power": 4.0}, output_weight=1.0
        )
        assert regularizer.regularizers["/mix"].sizes == (8, 24)
        torch.testing.assert_close(
            regularizer.terms()["mix"], Spread(8, 24, power=4.0)(model.mix.weight.flatten(1))
        )
        torch.testing.assert_close(regularizer.terms()["head"], half(model.head.weight, s=1))
        with pytest.raises(TypeError, match=r"expected hyperparameters: power=2\.0"):
            NetworkRegularizer(model, Spread, hidden_options={"s": 1})
        with pytest.raises(ValueError, match=r"expected it to return an nn\.Module, got None"):
            NetworkRegularizer(model, lambda N, d: None)

    def test_a_module_is_shared(self):
        model, shared = Network(), Spread(1, 1)
        regularizer = NetworkRegularizer(model, shared, shared)
        assert set(map(id, regularizer.regularizers.values())) == {id(shared)}
        torch.testing.assert_close(regularizer.terms()["head"], shared(model.head.weight))
        with pytest.raises(ValueError, match=r"module, got \{'power': 3\}: give its class"):
            NetworkRegularizer(model, shared, hidden_options={"power": 3})
        with pytest.raises(ValueError, match="a MHE for 8 neurons of dimension 24, got one for 9"):
            NetworkRegularizer(model, MHE(9, 24))

    def test_in_a_rule(self):
        model, own = Network(), MHE(8, 24, s=1)
        rules = {"mix": {"regularizer": own}, "*.qkv": {"regularizer": Spread, "power": 1.0}}
        terms = NetworkRegularizer(model, rules=rules).terms()
        torch.testing.assert_close(terms["mix"], own(model.mix.weight.flatten(1)))
        torch.testing.assert_close(
            terms["blocks.0.qkv"], Spread(24, 8, power=1.0)(model.blocks[0].qkv.weight)
        )


class TestSchedules:
    def test_the_weight_is_that_of_the_step(self):
        asked = []

        def weight(step):
            asked.append(step)
            return 2.0**step

        model = Network()
        regularizer = NetworkRegularizer(
            model, output=None, hidden_weight=weight, rules={"blocks.*": {"weight": ramp}}
        )
        mix, blocks = regularizer.terms()["mix"], sum(list(regularizer.terms().values())[1:])
        torch.testing.assert_close(regularizer(), mix)  # before the first update, too
        for step in range(3):
            regularizer.update(0.1)
            assert regularizer.step == step
            torch.testing.assert_close(regularizer(), 2**step * mix + ramp(step) * blocks)
        assert set(asked) == {0, 1, 2}
        assert "mix: hidden, 4 × HalfSpaceMHE" in repr(regularizer)

    def test_the_step_is_in_the_state_dict(self):
        model = Network()
        one, two = (NetworkRegularizer(model, hidden_weight=ramp) for _ in range(2))
        for _ in range(4):
            one.update(0.1)
        state = one.state_dict()
        assert {name: int(value) for name, value in state.items()} == {"updates": 4}
        two.load_state_dict(state)
        assert two.step == 3
        torch.testing.assert_close(two(), one())
        two.update(0.1)
        one.update(0.1)
        torch.testing.assert_close(two(), one())
        assert NetworkRegularizer(model).state_dict() == {}

    def test_copies_and_pickles_go_on(self):
        model = Network()
        one = NetworkRegularizer(model, hidden_weight=ramp)
        for _ in range(3):
            one.update(0.1)
        copied, pickled = copy.deepcopy(one), pickle.loads(pickle.dumps(one))
        pickled.attach(model)
        one.update(0.1)
        for twin in (copied, pickled):
            assert twin.step == 2
            twin.update(0.1)
            torch.testing.assert_close(twin(), one())

    def test_out_of_range_is_said_with_the_step(self):
        regularizer = NetworkRegularizer(Network(), output_weight=lambda step: 1.0 - step)
        regularizer.update(0.1)
        regularizer.update(0.1)
        with pytest.raises(ValueError, match="weight of 'head' at step 2 as a finite number ≥ 0"):
            regularizer.update(0.1)

    def test_a_compiled_forward_is_not_compiled_again(self):
        regularizer = NetworkRegularizer(Network(), hidden_weight=ramp)
        count = []

        def backend(graph, _):
            count.append(graph)
            return graph.forward

        compiled = torch.compile(regularizer, backend=backend, fullgraph=True)
        for _ in range(4):
            regularizer.update(0.1)
            torch.testing.assert_close(compiled(), regularizer())
        assert len(count) == 1


class TestReduction:
    def test_the_mean_is_the_sum_over_the_number_of_layers(self):
        model = Network()
        model.mix.requires_grad_(False)
        total, mean = (NetworkRegularizer(model, reduction=r)() for r in ("sum", "mean"))
        torch.testing.assert_close(5 * mean, total)
        with pytest.raises(ValueError, match="reduction as 'sum' or 'mean', got 'none'"):
            NetworkRegularizer(model, reduction="none")


class TestWeightedTerms:
    @pytest.mark.parametrize("reduction", ["sum", "mean"])
    def test_are_those_of_the_last_forward(self, reduction):
        model, calls = Network(), []
        regularizer = NetworkRegularizer(model, hidden_weight=0.5, reduction=reduction)
        assert regularizer.weighted_terms() == {}
        value = regularizer()
        regularizer.regularizers["/mix"].register_forward_hook(lambda *_: calls.append(1))
        terms = regularizer.weighted_terms("penalty/")
        assert list(terms) == [f"penalty/{name}" for name in regularizer.layers]
        assert not any(term.requires_grad for term in terms.values())
        torch.testing.assert_close(sum(terms.values()), value.detach())
        factor = 0.5 if reduction == "sum" else 0.5 / 6
        torch.testing.assert_close(terms["penalty/mix"], factor * half(model.mix.weight.detach()))
        assert calls == []
        with torch.no_grad():
            model.mix.weight.normal_()
        assert terms["penalty/mix"] == regularizer.weighted_terms()["mix"]
        model.requires_grad_(False)
        assert regularizer() == 0
        assert regularizer.weighted_terms() == {}


class TestSplit:
    def test_the_parts_are_layers(self):
        model = Network()
        regularizer = NetworkRegularizer(
            model, split={"*.qkv": 3}, rules={"*.qkv?2?": {"weight": 0}}
        )
        assert regularizer.layers[1:5] == [
            *(f"blocks.0.qkv[{k}]" for k in range(3)),
            "blocks.0.proj",
        ]
        terms = regularizer.terms()
        for part, rows in enumerate(model.blocks[0].qkv.weight.chunk(3)):
            torch.testing.assert_close(terms[f"blocks.0.qkv[{part}]"], half(rows))
        regularizer()
        assert regularizer.weighted_terms()["blocks.0.qkv[2]"] == 0
        roles = {role.name: role for role in regularizer.describe()}
        assert roles["blocks.0.qkv.weight"].role == "hidden"
        regularizer.attach(model)

    def test_of_the_output_layer(self):
        model = Network()
        regularizer = NetworkRegularizer(model, None, split={"head": [4, 6]})
        assert regularizer.output_layers == ["head[0]", "head[1]"]


class TestTied:
    @pytest.mark.parametrize("include", [(), "words"])
    def test_embeddings_count_once(self, include):
        model = Network()
        model.head.weight = model.words.weight
        regularizer = NetworkRegularizer(model, include=include)
        assert regularizer.layers[-1] == "head"
        assert "words" not in regularizer.layers
        torch.testing.assert_close(
            regularizer.terms()["head"], hyperspherical_energy(model.words.weight)
        )
