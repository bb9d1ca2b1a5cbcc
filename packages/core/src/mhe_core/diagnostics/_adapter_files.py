"""The effective weights of a base with an adapter that PEFT saved in a folder of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhe_core.diagnostics._checkpoint import Checkpoint, WeightsFileError

__all__ = ["adapted", "adapter_config"]

PREFIX = "base_model.model."
FACTORS = re.compile(
    r"(?P<layer>.*)\.(?P<factor>lora_A|lora_B|lora_embedding_A|lora_embedding_B|"
    r"lora_magnitude_vector|ia3_l)(\.weight)?$"
)

# Settings with which LoRA is more than W + BA, or its base not the one that it started from.
VARIANTS = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication",
    "monteclora_config", "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip
REBASED = ("corda", "loftq", "lora_ga", "olora", "pissa")


def adapter_config(folder: Path) -> dict[str, Any] | None:
    """The adapter's settings; None if the folder is none of an adapter."""
    file = folder / "adapter_config.json"
    try:
        return json.loads(file.read_text()) if file.is_file() else None
    except ValueError as error:
        raise WeightsFileError(f"expected settings in JSON, got {file}") from error


def adapted(
    base: Mapping[str, Tensor], adapter: Checkpoint, config: Mapping[str, Any], folder: Path
) -> Checkpoint:
    """The base's tensors, those that the adapter changes as they are in use.

    Known are LoRA, rsLoRA, DoRA and IA3.

    Args:
        base: the weights that the adapter belongs to.
        adapter: its own tensors.
        config: its settings.
        folder: where it is, for messages.

    Raises:
        WeightsFileError: if it is of another kind, or of another base.
    """
    kind = str(config.get("peft_type", "")).upper()
    start = str(config.get("init_lora_weights", ""))
    others = [name for name in VARIANTS if config.get(name)]
    others += [f"init_lora_weights={start!r}"] if start.lower().startswith(REBASED) else []
    if kind not in ("LORA", "IA3") or others:
        kind = " with ".join([kind, *others[:1]])
        raise WeightsFileError(
            f"expected an adapter of LoRA (rsLoRA, DoRA) or IA3 in files, got {kind or 'no kind'}: "
            f"merge {folder} into its base first (merge_and_unload), or inspect the model itself"
        )
    readers: dict[str, Callable[[], Tensor]]
    readers = {name: partial(base.__getitem__, name) for name in base}
    factors: dict[str, dict[str, Callable[[], Tensor]]] = {}
    for name in adapter:
        plain = name.removeprefix(PREFIX)
        match = FACTORS.match(plain)
        if match:
            factors.setdefault(match["layer"], {})[match["factor"]] = adapter.reader(name)
        else:  # a module that was trained and saved whole
            readers[re.sub(r"\.modules_to_save(\.default)?", "", plain)] = adapter.reader(name)
    unknown = [layer for layer in factors if f"{layer}.weight" not in base]
    if unknown:
        raise WeightsFileError(
            f"expected the base of the adapter {folder}, which has no {unknown[0]}.weight; "
            f"it has {', '.join(list(base)[:3])}, …"
        )
    for layer, parts in factors.items():
        read = partial(base.__getitem__, f"{layer}.weight")
        readers[f"{layer}.weight"] = partial(_effective, read, parts, dict(config), layer)
    return Checkpoint(readers)


def _effective(
    base: Callable[[], Tensor],
    parts: Mapping[str, Callable[[], Tensor]],
    config: Mapping[str, Any],
    layer: str,
) -> Tensor:
    """The layer's weight in use, in the base's dtype and layout."""
    stored = base()
    weight = stored.float()
    transposed = bool(config.get("fan_in_fan_out"))
    if "ia3_l" in parts:
        scale = parts["ia3_l"]().float()
        return (weight * (scale.T if transposed else scale)).to(stored.dtype)
    update = lora_update(parts, config, layer).float()
    embedding = "lora_embedding_A" in parts
    if transposed or embedding:
        update = update.mT
    changed = weight + update.reshape(weight.shape)
    if "lora_magnitude_vector" in parts:
        others = (0,) if transposed or embedding else tuple(range(1, weight.ndim))
        norm = torch.linalg.vector_norm(changed, dim=others, keepdim=True)
        changed = changed * (parts["lora_magnitude_vector"]().float().view(norm.shape) / norm)
    return changed.to(stored.dtype)


def lora_update(
    parts: Mapping[str, Callable[[], Tensor]], config: Mapping[str, Any], layer: str
) -> Tensor:
    """Scale · B A, as ``[out, in]``, for convolutions ``[out, in·kernel]``."""
    embedding = "lora_embedding_A" in parts
    down, up = (parts[f"lora_embedding_{x}" if embedding else f"lora_{x}"]() for x in "AB")
    rank = down.shape[0]
    alpha = config.get("lora_alpha", rank)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = own
            break
    scale: float = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return scale * (up.float().flatten(1) @ down.float().flatten(1))
