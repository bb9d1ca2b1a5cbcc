"""What a network's regularizer covers, as what, and what it says about it."""

from __future__ import annotations

import copy
import math
import pickle
import re
import warnings

import pytest
import torch
from mhe_core import NetworkRegularizer
from torch import nn


class Heads(nn.Module):
    def __init__(self, **heads: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        for name, head in heads.items():
            self.add_module(name, head)


class Blocks(nn.Module):
    """A stack of equal blocks, as transformers are, whose keys are of another width."""

    def __init__(self, **heads: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 8), nn.Linear(16, 32), nn.Linear(32, 16)) for _ in range(2)
        )
        for name, head in heads.items():
            self.add_module(name, head)


class Cosine(nn.Module):
    """A head with a weight of its own, as margin losses have it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 16))


class TestOutputLayers:
    def test_are_public_and_given_by_names_and_patterns(self):
        model = Heads(head_a=nn.Linear(16, 5), head_b=nn.Linear(16, 7))
        for given in (["head_a", "head_b"], "head_*"):
            regularizer = NetworkRegularizer(model, output_layer=given)
            assert regularizer.layers == ["body.0", "body.2", "head_a", "head_b"]
            assert regularizer.output_layers == ["head_a", "head_b"]
        assert NetworkRegularizer(model, output_layer="head_a").output_layers == ["head_a"]
        with pytest.raises(ValueError, match=r"output_layer to fit one of .*got 'tail\*'"):
            NetworkRegularizer(model, output_layer=["head_a", "tail*"])

    @pytest.mark.parametrize(
        ("heads", "others"),
        [
            ({"head_a": nn.Linear(16, 5), "head_b": nn.Linear(16, 7)}, "'head_a'"),
            ({"aux": nn.Sequential(nn.Linear(12, 10)), "fc": nn.Linear(16, 10)}, "'aux.0'"),
            ({"cls_score": nn.Linear(16, 9), "bbox_pred": nn.Linear(16, 36)}, "'cls_score'"),
            ({"head": Cosine()}, "'head'"),
            ({"shortcut": nn.Conv2d(16, 32, 1)}, "1×1 convolution"),
        ],
    )
    def test_a_guess_that_is_not_safe_lists_what_may_be_meant(self, heads, others):
        with pytest.warns(UserWarning, match=f"output layer is a guess.*{others}"):
            NetworkRegularizer(Heads(**heads))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            NetworkRegularizer(Heads(**heads), output_layer=next(iter(heads)) + "*")

    @pytest.mark.parametrize(
        ("model", "output", "said"),
        [
            (lambda: Blocks(), "blocks.1.2", "part of a block that occurs several times"),
            (lambda: Blocks(pooler=nn.Linear(16, 16)), "pooler", "as many outputs as others have"),
            (lambda: Blocks(words=nn.Linear(16, 99), next=nn.Linear(16, 2)), "next", "'words'"),
            (lambda: Blocks(box=nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 4)]),
                            label=nn.Linear(16, 9)), "label", r"'box\.1'"),
            (lambda: Blocks(score=nn.Linear(16, 9)), "score", None),
            (lambda: Blocks(score=nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 9))),
             "score.1", None),
            (lambda: nn.Sequential(Blocks(), nn.Linear(16, 16)), "1", None),
        ],
    )  # fmt: skip
    def test_of_blocks_is_known_by_what_no_other_layer_takes(self, model, output, said, recwarn):
        regularizer = NetworkRegularizer(model())
        assert regularizer.output_layers == [output]
        warned = [str(warning.message) for warning in recwarn]
        assert len(warned) == (said is not None)
        assert all(re.search(f"output layer is a guess.*{said}", message) for message in warned)

    def test_a_long_list_of_what_may_be_meant_is_cut(self):
        heads = {f"head_{k}": nn.Linear(16, 20 + k) for k in range(12)}
        with pytest.warns(UserWarning, match=r"beside 'head_0', .*'head_7' and 3 more\. output_la"):
            NetworkRegularizer(Heads(**heads))

    def test_a_classifier_of_several_heads_has_several_output_layers(self):
        class Distilled(Heads):
            def get_classifier(self):
                return self.head

        head = nn.ModuleDict(
            {"mix": nn.Linear(16, 16), "own": nn.Linear(16, 5), "teacher": nn.Linear(16, 5)}
        )
        assert NetworkRegularizer(Distilled(head=head)).output_layers == [
            "head.own",
            "head.teacher",
        ]

    def test_a_plain_head_is_no_guess(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert NetworkRegularizer(Heads(head=nn.Linear(16, 5))).output_layers == ["head"]
            widening = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 5))
            assert NetworkRegularizer(widening).output_layers == ["2"]


SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 50,
}  # fmt: skip
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 8}
DETR = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sizes", "output", "said"),
    [
        ("BertForSequenceClassification", SIZES, "classifier", None),
        ("BertForPreTraining", SIZES, "cls.seq_relationship", "'cls.predictions.decoder'"),
        ("BertModel", SIZES, "pooler.dense", "as many outputs as others have inputs"),
        ("LlamaForCausalLM", SIZES, "lm_head", None),
        ("LlamaModel", SIZES, "layers.1.mlp.down_proj", "part of a block"),
        ("ViTForImageClassification", SIZES, "classifier", None),
        ("GPT2LMHeadModel", GPT2, "lm_head", None),
        ("GPT2DoubleHeadsModel", GPT2, "multiple_choice_head.summary", "'lm_head'"),
        ("DetrForObjectDetection", DETR, "bbox_predictor.layers.2", "'class_labels_classifier'"),
    ],
)
def test_of_transformers_a_guess_is_right_or_said(name, sizes, output, said, recwarn):
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, name)
    config = kind.config_class(**sizes)
    if sizes is DETR:
        config.backbone_config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"]
        )
    with torch.device("meta"):
        model = kind(config)
    recwarn.clear()
    assert NetworkRegularizer(model)._outputs == [output]
    warned = [str(w.message) for w in recwarn if "guess" in str(w.message)]
    assert len(warned) == (said is not None)
    assert all(said in message for message in warned)


class TestDescription:
    def test_lists_every_matrix_with_its_role_and_reason(self):
        model = nn.Sequential(
            nn.Embedding(9, 8), nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16),
            nn.Linear(16, 1), nn.LayerNorm(16), nn.Linear(2, 16), nn.Linear(16, 16),
            nn.Linear(16, 4),
        )  # fmt: skip
        model[2].weight = model[1].weight = nn.Parameter(torch.randn(16, 16))
        model[3].requires_grad_(False)
        found = {role.name: role for role in NetworkRegularizer(model, exclude="7").describe()}
        assert {name: role.role for name, role in found.items()} == {
            "0.weight": "left out", "1.weight": "hidden", "3.weight": "left out",
            "4.weight": "left out", "6.weight": "left out", "7.weight": "left out",
            "8.weight": "output",
        }  # fmt: skip
        assert "Embedding, which include= covers" in found["0.weight"].reason
        assert found["3.weight"].reason == "frozen"
        assert "fewer than two neurons" in found["4.weight"].reason
        assert "16 neurons in 2 dimensions" in found["6.weight"].reason
        assert "excluded" in found["7.weight"].reason
        assert found["8.weight"].shape == (4, 16)
        assert str(found["8.weight"]) == "8.weight [4, 16]: output, layer '8'"

    def test_repr_shows_what_is_what(self):
        model = Heads(head=nn.Linear(16, 5))
        shown = repr(NetworkRegularizer(model, hidden_weight=0.5, hidden_options={"s": 1}))
        assert "body.0: hidden, 0.5 × HalfSpaceMHE(num_neurons=16, dim=8, s=1" in shown
        assert "head: output, 10 × MHE(num_neurons=5" in shown

    def test_covering_nothing_or_little_is_said(self):
        with pytest.warns(UserWarning, match="no trained layer is covered"):
            NetworkRegularizer(Heads(head=nn.Linear(16, 5)).requires_grad_(False))
        words = nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 16), nn.Linear(16, 5))
        with pytest.warns(UserWarning, match=r"2\d% of the network's trained weights"):
            NetworkRegularizer(words)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            NetworkRegularizer(words, include="0")
            NetworkRegularizer(words, hidden=None)


class TestArguments:
    @pytest.mark.parametrize("model", [None, [nn.Linear(4, 4)], "resnet18"])
    def test_a_model_that_is_none_is_refused(self, model):
        with pytest.raises(TypeError, match=r"model as a torch.nn.Module, got \w+"):
            NetworkRegularizer(model)

    @pytest.mark.parametrize("value", [{"head": 1.0}, "1", None, True])
    def test_weights_that_are_no_numbers_are_refused(self, value):
        with pytest.raises(TypeError, match="hidden_weight as a number, got "):
            NetworkRegularizer(nn.Linear(4, 4), hidden_weight=value)

    @pytest.mark.parametrize("lr", [-1, math.nan, math.inf])
    def test_learning_rates_out_of_range_are_refused(self, lr):
        with pytest.raises(ValueError, match="lr as a finite number ≥ 0"):
            NetworkRegularizer(nn.Linear(4, 4)).update(lr)


class TestCopies:
    def test_carry_no_model(self):
        model = nn.Sequential(nn.Linear(64, 512), nn.Linear(512, 10))
        regularizer = NetworkRegularizer(model)
        twin = copy.deepcopy(regularizer)
        assert twin() == regularizer()
        with torch.no_grad():
            model[1].weight[0] += 1
        assert twin() == regularizer()  # the same model
        pickled = pickle.dumps(regularizer)
        assert len(pickled) < 10_000
        back = pickle.loads(pickled)
        with pytest.raises(RuntimeError, match=r"attach\(model\) first"):
            back()
        back.attach(model)
        assert back() == regularizer()
        with pytest.raises(ValueError, match="model with the layers"):
            back.attach(nn.Linear(4, 4))
