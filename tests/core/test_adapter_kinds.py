"""Every kind of adapter that PEFT has, on every kind of layer: read as forward uses it, or said."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from mhe_core import NetworkRegularizer
from mhe_core.network import named_weights
from packaging import version
from torch import Tensor, nn

peft = pytest.importorskip("peft")


class Network(nn.Module):
    """A layer of each kind, none of them called by another."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.no_bias = nn.Linear(8, 8, bias=False)
        self.words = nn.Embedding(10, 8)
        self.conv = nn.Conv2d(4, 8, 3)
        self.conv_1x1 = nn.Conv2d(4, 8, 1)
        self.grouped = nn.Conv2d(4, 8, 3, groups=2)
        self.conv1d = nn.Conv1d(4, 8, 3)
        self.conv3d = nn.Conv3d(4, 8, 1)
        self.head = nn.Linear(8, 4)
        try:
            from transformers.pytorch_utils import Conv1D
        except ImportError:
            return
        self.transposed = Conv1D(8, 8)


KINDS = [name for name, _ in Network().named_children() if name != "head"]
SIZES = {
    "AdaLora": {"init_r": 3, "target_r": 2, "total_step": 10, "tinit": 1, "tfinal": 1},
    "BOFT": {"boft_block_size": 4},
    "Beft": {},
    "C3A": {"block_size": 4},
    "Deft": {},
    "FourierFT": {"n_frequency": 20},
    "Frod": {},
    "Gralora": {"r": 2, "hybrid_r": 2},
    "IA3": {},
    "LNTuning": {},
    "OFT": {"oft_block_size": 4},
    "OSF": {},
    "Road": {"group_size": 4},
    "Supertuning": {"sparsity": 0.5},
    "TrainableTokens": {"token_indices": [1, 3]},
    "VBLoRA": {"num_vectors": 10, "vector_length": 4, "r": 2, "topk": 2},
    "WaveFT": {"n_frequency": 20},
}
# Read on whatever of the layers PEFT puts them.
READ = {
    **{name: {} for name in ("LoHa", "LoKr", "Lora", "AdaLora", "OFT", "BOFT", "C3A", "Delora")},
    **{name: {} for name in ("FourierFT", "WaveFT", "Gralora", "Psoft", "RandLora", "TinyLora")},
    **{name: {} for name in ("UniLora", "VBLoRA", "Vera", "TrainableTokens")},
    "IA3": {"feedforward_modules": []},
    "IA3 of inputs": {"feedforward_modules": ".*"},
    "BOFT of two factors": {"boft_block_size": 2, "boft_n_butterfly_factor": 2},
    "LoHa, effective": {"use_effective_conv2d": True},
    "LoKr, effective": {"use_effective_conv2d": True, "decompose_both": True},
    "LoKr, dropped out": {"rank_dropout": 0.5, "module_dropout": 0.5},
    "Lora, rank-stabilized": {"use_rslora": True, "lora_dropout": 0.5},
    "Lora with a bias": {"lora_bias": True},
    "Lora, DoRA": {"use_dora": True},
    "Lora, MiCA": {"init_lora_weights": "mica"},
    "Lora, PiSSA": {"init_lora_weights": "pissa"},
    "Lora, OLoRA": {"init_lora_weights": "olora"},
    "OFT the other way round": {"fan_in_fan_out": True},
}
LEFT_OUT = {
    **{name: {} for name in ("Adamss", "Beft", "Deft", "Frod", "Glora", "HRA", "Hira", "LNTuning")},
    **{name: {} for name in ("Lily", "OSF", "Peanut", "Poly", "Pvera", "Road", "Shira", "Miss")},
    "Supertuning": {},
    "Miss, whole": {"init_weights": "bat"},
    "Lora, KaSA": {"kasa_config": "Kasa"},
    "Lora, MonteCLoRA": {"monteclora_config": "Monteclora"},
    "Lora, VeLoRA": {"velora_config": "Velora"},
}


# Adapters that mix a convolution's groups, that turn what comes out of an embedding, and that say
# themselves that they do not only add something.
UNREAD = {(kind, "grouped") for kind in ("Lora", "AdaLora", "OFT")}
UNREAD |= {("OFT", "words"), ("FourierFT", "transposed"), ("WaveFT", "transposed")}


def first_word(kind: str) -> str:
    return kind.replace(",", " ").split()[0]


def adapted(kind: str, layer: str) -> nn.Module | None:
    """The network with such an adapter, which changes something, on one layer; None if PEFT cannot.

    A kind's first word is that of the configuration.
    """
    first = first_word(kind)
    config = getattr(peft, f"{first}Config", None)
    options = SIZES.get(first, {"r": 2}) | (READ | LEFT_OUT)[kind]
    for name, value in options.items():
        if name.endswith("_config"):
            options[name] = getattr(peft, f"{value}Config", lambda: None)()
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(Network(), config(target_modules=[layer], **options))
    except Exception:  # of whatever kind: PEFT has no such adapter for such a layer
        return None
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def neurons_of_forward(layer: nn.Module, base: nn.Module) -> Tensor:
    """What forward multiplies each entry of the input by."""
    if isinstance(base, nn.Embedding):
        return layer(torch.arange(10))
    shape = (8,) if not hasattr(base, "kernel_size") else (4, *base.kernel_size)
    inputs = torch.eye(torch.Size(shape).numel()).view(-1, *shape)
    rows = (layer(inputs) - layer(torch.zeros(1, *shape))).flatten(1).T
    groups = getattr(base, "groups", 1)
    if groups == 1:
        return rows
    blocks = rows.view(groups, len(rows) // groups, groups, -1)
    return torch.stack([blocks[k, :, k] for k in range(groups)])


def on_each_layer(kind: str) -> Iterator[tuple[str, nn.Module]]:
    models = {layer: adapted(kind, layer) for layer in KINDS}
    if not any(models.values()):
        assert version.parse(peft.__version__) < version.parse("0.21"), "no layer has the adapter"
        pytest.skip("this PEFT has no such adapter")
    for layer, model in models.items():
        if model is not None:
            yield layer, model


def names() -> list[str]:
    return list(named_weights(Network()))


@pytest.mark.parametrize("kind", READ)
def test_what_is_read_is_what_forward_uses(kind):
    for name, model in on_each_layer(kind):
        weights = named_weights(model)
        assert list(weights) == names()
        weight, layer = weights[name], model.get_submodule(f"base_model.model.{name}")
        if weight.problem is not None:
            assert "is not known" in weight.problem
            assert (first_word(kind), name) in UNREAD
            continue
        state, generator = copy.deepcopy(model.train().state_dict()), torch.get_rng_state()
        got = weight.neurons()
        assert torch.equal(torch.get_rng_state(), generator), name
        assert all(torch.equal(v, state[key]) for key, v in model.state_dict().items()), name
        with torch.no_grad():
            want = neurons_of_forward(model.eval() and layer, weight.module)
        assert got.shape == want.shape, name
        assert (got - want).norm() < 1e-5 * want.norm(), name
        torch.manual_seed(0)
        stored = named_weights(Network())[name].neurons()
        assert not torch.allclose(got, stored, atol=1e-3), name


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_cannot_be_read_is_left_out_and_that_is_said(kind):
    for name, model in on_each_layer(kind):
        weights = named_weights(model)
        assert list(weights) == names()
        layer = model.get_submodule(f"base_model.model.{name}")
        if not hasattr(layer, "base_layer"):  # PEFT leaves such a layer as it is
            continue
        assert f"adapter {type(layer).__module__}.{type(layer).__name__}" in weights[name].problem
        with pytest.raises(TypeError, match="is not known"):
            weights[name].neurons()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            regularizer = NetworkRegularizer(model)
        assert name not in regularizer.layers
        roles = {role.name: role for role in regularizer.describe() if f"{name}." in role.name}
        trained = [n for n, p in model.named_parameters() if p.requires_grad and p.ndim > 1]
        said = [roles[n.removeprefix("base_model.model.")].reason for n in trained if name in n]
        assert all("is not known" in reason for reason in said), said


def test_forward_that_another_mixes_by_what_comes_in_is_left_out(tmp_path):
    """X-LoRA's: it replaces the forward of LoRA's layers."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(peft, "XLoraConfig"):
        pytest.skip("this PEFT has no X-LoRA")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 20}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, use_cache=False)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(transformers.LlamaForCausalLM(config), lora)
    model.save_pretrained(tmp_path)
    mixed = peft.XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=16, adapters={"0": str(tmp_path), "1": str(tmp_path)}
    )
    weights = named_weights(peft.get_peft_model(transformers.LlamaForCausalLM(config), mixed))
    assert list(weights) == list(named_weights(transformers.LlamaForCausalLM(config)))
    problems = {name: weight.problem for name, weight in weights.items() if weight.problem}
    assert list(problems) == ["model.layers.0.self_attn.q_proj"]
    assert "its forward is that of peft.tuners.xlora" in problems["model.layers.0.self_attn.q_proj"]
