"""The effective weight of a layer that one of PEFT's adapters wraps, without importing PEFT.

Known are LoRA (with DoRA and rsLoRA), OFT, BOFT, IA3, trainable tokens, and whatever adds a matrix
to the weight and says so. Where adapters are disabled or merged, it is the wrapped layer's own. A
layer whose adapters do something else has a problem, which says so: it is never read as the wrapped
layer alone.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mhe_core.network._in_use import CONVOLUTIONS
from mhe_core.network._weight import Weight, dense, gathered

__all__ = ["adapter_weights"]

Step = Callable[[Tensor], Tensor]

LEAST_PEFT = (0, 17)


def adapter_weights(
    module: Any, read: Callable[[nn.Module], Mapping[str, Weight]]
) -> dict[str, Weight] | None:
    """The weights of an adapter layer by name; None if the module is none.

    Args:
        module: any module.
        read: reads the weights of the wrapped module.
    """
    if "base_layer" not in module._modules or not hasattr(module, "adapter_layer_names"):
        return None
    base = read(module.base_layer)
    children = tuple(module.children())
    weights = {name: replace(w, replaces=(*w.replaces, *children)) for name, w in base.items()}
    adapters = [] if module.disable_adapters or module.merged else active_adapters(module)
    if not adapters:
        return weights
    name = getattr(module, "parameter_name", "weight")
    if name not in weights and isinstance(module.base_layer, nn.MultiheadAttention):
        name = "in_proj_weight"
        out = read(module.base_layer.out_proj)
        weights["out_proj"] = replace(out["weight"], replaces=children)
    if name not in weights:
        return weights
    weight = weights[name].whole()  # what the adapter adds is to be seen beside its lengths
    own = [p for a in adapters for p in adapter_parameters(module, a)]
    problem = problem_of(module, adapters)
    if problem is not None:
        weights[name] = replace(weight, sources=(*weight.sources, *own), problem=problem)
        return weights

    def effective() -> Tensor:
        value = dense(weight.read())
        sharded = {id(p) for p in own if hasattr(p, "full_tensor")}
        named = module.named_parameters() if sharded else ()
        whole = {f"layer.{name}": gathered(p) for name, p in named if id(p) in sharded}
        for adapter in adapters:
            step = _Step(module, adapter)
            value = functional_call(step, whole, (value,)) if whole else step(value)
        return value

    weights[name] = replace(weight, sources=(*weight.sources, *own), read=effective)
    return weights


class _Step(nn.Module):
    """What an adapter does to the weight, as a module, whose tensors others can stand in for."""

    def __init__(self, layer: nn.Module, adapter: str) -> None:
        super().__init__()
        self.layer, self.adapter = layer, adapter

    def forward(self, weight: Tensor) -> Tensor:
        step = step_of(self.layer, self.adapter)
        assert step is not None  # otherwise the weight has a problem, and is not read
        return step(weight)


def problem_of(module: nn.Module, adapters: list[str]) -> str | None:
    """Why what the adapters do to the weight cannot be read; None if it can."""
    if outdated(module):
        return f"adapters of PEFT before {'.'.join(map(str, LEAST_PEFT))} are not known"
    other = getattr(vars(module).get("forward"), "__self__", module)
    if other is not module:  # as X-LoRA's, which mixes adapters by what comes in
        kind = f"{type(other).__module__}.{type(other).__name__}"
        return f"its forward is that of {kind}, and what that does is not known"
    if any(step_of(module, adapter) is None for adapter in adapters):
        kind = f"{type(module).__module__}.{type(module).__name__}"
        where = f" to a convolution in {groups(module)} groups" if groups(module) > 1 else ""
        return f"what the adapter {kind} does{where} is not known"
    return None


def groups(module: Any) -> int:
    """Those of the convolution inside all adapters; 1 of any other layer."""
    while "base_layer" in module._modules:
        module = module.base_layer
    return module.groups if isinstance(module, CONVOLUTIONS) else 1


def outdated(module: nn.Module) -> bool:
    """Whether the adapter is one of an older PEFT, which computes some adapters differently."""
    peft = sys.modules.get("peft") if type(module).__module__.startswith("peft.") else None
    version = getattr(peft, "__version__", "")
    return tuple(map(int, re.findall(r"\d+", version)[:2] or LEAST_PEFT)) < LEAST_PEFT


def active_adapters(module: Any) -> list[str]:
    """The adapters that the layer has and forward uses."""
    return [name for name in module.active_adapters if adapter_parameters(module, name)]


def adapter_parameters(module: Any, adapter: str) -> list[Tensor]:
    """The adapter's own parameters in this layer."""
    parameters: list[Tensor] = []
    for name in module.adapter_layer_names:
        held: Any = getattr(module, name, None)
        part = held[adapter] if hasattr(held, "keys") and adapter in held else None
        if isinstance(part, nn.Module):
            parameters += part.parameters()
        elif isinstance(part, Tensor):
            parameters.append(part)
    return parameters


def step_of(module: Any, adapter: str) -> Step | None:
    """What the adapter does to the weight; None if that is not known."""
    for has, step in STEPS.items():
        if adapter in getattr(module, has, ()):
            return step(module, adapter)
    says = getattr(module, "supports_lora_conversion", None)
    adds = any(kind.__name__ == "LycorisLayer" for kind in type(module).__mro__)  # LoHa, LoKr
    if not (adds or (says is not None and says(adapter))):
        return None
    return added(module, adapter) if depends_on_name(module.get_delta_weight) else None


def depends_on_name(get_delta_weight: Any) -> bool:
    """Whether it takes an adapter's name alone; MiSS's is a function of the weight, too."""
    parameters = inspect.signature(get_delta_weight).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    return len(needed) == 1


def added(module: Any, adapter: str) -> Step:
    """W + ΔW, with ΔW in the layout of W."""
    return lambda weight: weight + module.get_delta_weight(adapter)


def delta_of_lora(module: Any, adapter: str) -> Tensor:
    """ΔW of LoRA, of convolutions not by PEFT, which has a wrong shape for some of them."""
    down = dict(module.lora_A).get(adapter)
    delta: Tensor
    if isinstance(down, CONVOLUTIONS):
        delta = module.lora_B[adapter].weight.flatten(1) @ down.weight.flatten(1)
        delta = delta.view(len(delta), *down.weight.shape[1:]) * module.scaling[adapter]
    else:
        delta = module.get_delta_weight(adapter)
    return delta


def lora(module: Any, adapter: str) -> Step | None:
    """LoRA and rsLoRA (Hu et al. 2021, arXiv:2106.09685); DoRA by its own."""
    if groups(module) > 1:  # whose inputs it mixes
        return None
    variants = getattr(module, "lora_variant", {})
    if adapter in (getattr(module, "lora_magnitude_vector", None) or ()):
        return dora(module, adapter)
    if adapter in variants and not type(variants[adapter]).__name__.startswith("MiCA"):
        return None
    return lambda weight: weight + delta_of_lora(module, adapter)


def dora(module: Any, adapter: str) -> Step:
    """M · (W + ΔW) / ‖W + ΔW‖, the norm without a gradient (DoRA, Liu et al. 2024, 2402.09353)."""
    magnitude = module.lora_magnitude_vector[adapter].weight
    base = module.get_base_layer()
    columns = getattr(module, "fan_in_fan_out", False) or isinstance(base, nn.Embedding)

    def step(weight: Tensor) -> Tensor:
        changed = weight + delta_of_lora(module, adapter)
        others = (0,) if columns else tuple(range(1, changed.ndim))
        norm = torch.linalg.vector_norm(changed.detach(), dim=others, keepdim=True)
        scaled: Tensor = magnitude.view(norm.shape) / norm * changed
        return scaled

    return step


def oft(module: Any, adapter: str) -> Step | None:
    """The rows turned: W·Rᵀ (OFT, Qiu et al. 2023, arXiv:2306.07280)."""
    if groups(module) > 1:
        return None
    rotation = module.oft_R[adapter]

    def step(weight: Tensor) -> Tensor:
        # On a copy, as the constrained variant projects its parameter in forward.
        own = {"weight": rotation.weight.clone()}
        eye = torch.eye(rotation.in_features, device=weight.device, dtype=own["weight"].dtype)
        turned: Tensor = functional_call(rotation, own, (eye,)).to(weight.dtype)
        if module.fan_in_fan_out and weight.ndim == 2:
            return turned @ weight
        return (weight.flatten(1) @ turned.mT).view_as(weight)

    return step


def boft(module: Any, adapter: str) -> Step:
    """Turned by a butterfly of blocks, then scaled by row (BOFT, Liu et al. 2023, 2311.06243)."""

    def step(weight: Tensor) -> Tensor:
        turn, scale = (part.to(weight.dtype) for part in module.get_delta_weight(adapter))
        turned = weight.flatten(1) @ turn.mT
        scaled: Tensor = turned * scale.reshape(-1, 1)
        return scaled.view_as(weight)

    return step


def ia3(module: Any, adapter: str) -> Step:
    """Inputs or outputs scaled (IA3, Liu et al. 2022, arXiv:2205.05638)."""
    scale: Tensor = module.ia3_l[adapter]
    by_channel = getattr(module, "_get_ia3_scaling_for_weight", None)

    def step(weight: Tensor) -> Tensor:
        if by_channel is not None:
            factor: Tensor = by_channel(scale)
            return weight * factor
        outputs_first = scale.ndim > 2 and not module.is_feedforward  # as PEFT 0.17 merges them
        turned = module.fan_in_fan_out or outputs_first
        return weight * (scale.transpose(0, 1) if turned else scale)

    return step


def tokens(module: Any, adapter: str) -> Step:
    """Some rows of an embedding replaced."""
    return lambda weight: module.get_merged_weights([adapter])


STEPS: dict[str, Callable[[Any, str], Step | None]] = {
    "lora_A": lora,
    "lora_embedding_A": lora,
    "oft_R": oft,
    "boft_R": boft,
    "ia3_l": ia3,
    "trainable_tokens_delta": tokens,
}
