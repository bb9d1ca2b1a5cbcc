"""What is inside a wrapper that adds nothing to a module's weights."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["unwrapped"]

# The attribute that holds the wrapped module: of torch.compile, activation checkpointing, FSDP1,
# Lightning's Fabric. FSDP2 changes a module's class, and has no wrapper.
ATTRIBUTES = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_original_module")
PARALLEL = ("DistributedDataParallel", "DataParallel", "DeepSpeedEngine", "AveragedModel")


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside all its wrappers.

    Known are DistributedDataParallel, DataParallel, DeepSpeed's engine, ``torch.compile``,
    activation checkpointing, FSDP1, Lightning's Fabric, and PEFT's models and saved modules.
    """
    while (inner := _inside(module)) is not None:
        module = inner
    return module


def _inside(module: Any) -> nn.Module | None:
    """What the outermost wrapper is around; None if there is none."""
    children: dict[str, nn.Module] = module._modules
    for attribute in ATTRIBUTES:
        if attribute in children:
            return children[attribute]
    if "module" in children and any(c.__name__ in PARALLEL for c in type(module).__mro__):
        return children["module"]
    if "base_model" in children and hasattr(module, "peft_config"):  # PeftModel
        return children["base_model"]
    if "model" in children and hasattr(module, "inject_adapter"):  # the tuner in it
        return children["model"]
    if "lora_model" in children and "internal_xlora_classifier" in children:  # X-LoRA's
        return children["lora_model"]
    if "modules_to_save" in children and "original_module" in children:
        active = [name for name in module.active_adapters if name in module.modules_to_save]
        if active and not module.disable_adapters:
            saved: nn.Module = module.modules_to_save[active[0]]
            return saved
        return children["original_module"]
    if "token_adapter" in children and "original_module" in children:
        return children["token_adapter"]
    return None
