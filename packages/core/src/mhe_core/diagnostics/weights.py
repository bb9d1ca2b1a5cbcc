"""Weights from a file, without running code that may be in it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhe_core.diagnostics._adapter_files import adapted, adapter_config
from mhe_core.diagnostics._checkpoint import Checkpoint, WeightsFileError, without_wrappers
from mhe_core.diagnostics._folders import (
    distributed_checkpoint,
    file_of_folder,
    is_distributed,
    sharded,
)
from mhe_core.diagnostics._torch_files import RefusedFileError, read_torch_file

__all__ = ["WeightsFileError", "load_state_dict"]

# What training programs call the network's state dict in a checkpoint, best first.
USUAL_KEYS = ("model", "state_dict", "model_state_dict", "net", "network", "module")
MAPPED = 2**27  # bytes of a file that are left in memory before it is mapped anew


def load_state_dict(
    path: str | Path, key: str | None = None, *, base: Mapping[str, Tensor] | None = None
) -> Mapping[str, Tensor]:
    """The state dict in a weights file or folder, each tensor read when it is asked for.

    Read are safetensors and what ``torch.save`` wrote; the content decides, not the suffix. Of
    folders (or their index, ``model.safetensors.index.json``), Hugging Face's with shards, those of
    torch.distributed.checkpoint, and adapters of PEFT (LoRA, rsLoRA, DoRA, IA3), whose effective
    weights are those of their base. Only tensors and plain values are read; a file that would
    have to run code to be read (pickled modules, TorchScript) is refused. Names are those inside
    DistributedDataParallel and ``torch.compile``.

    Args:
        path: the file or folder.
        key: where in a nested checkpoint the state dict is, with dots between levels. By default
            the only one there is, or the one under a usual key such as ``model``.
        base: the weights that an adapter belongs to. By default those that its settings name, if
            they are on this machine.

    Returns:
        Tensors on the CPU by name. ``dict()`` of it reads them all.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsFileError: (a ValueError) if it is something else, is damaged, is refused, or if it
            does not tell which of several state dicts is meant.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"expected a weights file, found no {path}")
    config = adapter_config(path) if path.is_dir() else None
    if config is not None:
        base = base_of(path, config) if base is None else base
        return adapted(base, opened(path, key), config, path)
    found = opened(path, key)
    return found.renamed(without_wrappers(list(found)))


def base_of(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The weights that an adapter's settings name as its base."""
    name = config.get("base_model_name_or_path")
    for place in (Path(name), folder / name) if name else ():
        if place.exists():
            return load_state_dict(place)
    raise WeightsFileError(
        f"{folder} is an adapter of {name!r}, which is no file or folder here: give its base"
    )


def opened(path: Path, key: str | None, *, shard: bool = False) -> Checkpoint:
    """What is in a file or folder, under the names that are stored; of a shard, all tensors."""
    if path.is_dir():
        if is_distributed(path):
            return within(distributed_checkpoint(path), key, path)
        return opened(file_of_folder(path), key)
    if path.name.endswith(".index.json"):
        return within(sharded(path, partial(opened, key=None, shard=True)), key, path)
    if is_safetensors(path):
        return within(safetensors_file(path), key, path)
    with path.open("rb") as file:
        if file.read(4) == b"GGUF":
            raise WeightsFileError(
                f"{path} is GGUF, whose weights are quantized in blocks: give the checkpoint that "
                "it was made from"
            )
    return torch_file(path, key, shard=shard)


def within(found: Checkpoint, key: str | None, path: Path) -> Checkpoint:
    """The tensors whose names start with the key."""
    if key is None:
        return found
    names = {name: name.removeprefix(f"{key}.") for name in found if name.startswith(f"{key}.")}
    if not names:
        starts = sorted({name.partition(".")[0] for name in found})
        raise WeightsFileError(f"expected key to be one of {starts}, got {key!r}: {path}")
    return found.renamed(names)


def torch_file(path: Path, key: str | None, *, shard: bool) -> Checkpoint:
    """Of what ``torch.save`` wrote. Mapped from the disk, and anew before too much is in memory."""

    def mapped_state() -> dict[str, Tensor]:
        content = read_pickled(path)
        return content if shard else find_state_dict(content, key, path)

    state = mapped_state()
    identities = {
        name: (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape)
        for name, tensor in state.items()
        if tensor.layout is torch.strided and not tensor.is_meta and tensor.numel() > 0
    }
    mapped = {"state": state}
    touched = 0

    def read(name: str) -> Tensor:
        nonlocal touched
        if touched > MAPPED:
            mapped["state"] = mapped_state()
            touched = 0
        tensor = mapped["state"][name]
        touched += tensor.numel() * tensor.element_size()
        return tensor

    return Checkpoint({name: partial(read, name) for name in state}, identities)


def safetensors_file(path: Path) -> Checkpoint:
    """Of a safetensors file, which is opened anew for each tensor."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise WeightsFileError(
            f"reading {path} needs safetensors: pip install 'mhe-core[safetensors]'"
        ) from error

    def read(name: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    try:
        with safe_open(path, framework="pt") as file:
            return Checkpoint({name: partial(read, name) for name in file.keys()})  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsFileError(f"{path} is a damaged safetensors file: {error}") from error


def is_safetensors(path: Path) -> bool:
    """Whether the file starts like safetensors: the length of a header, then a JSON object."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length <= path.stat().st_size - 8


def read_pickled(path: Path) -> Any:
    """Content of what ``torch.save`` wrote, of tensors and plain values only."""
    try:
        return read_torch_file(path, mapped=True)
    except RefusedFileError as error:
        raise WeightsFileError(f"refused to read {path}: it is {error}") from error
    except pickle.UnpicklingError as error:
        if not starts_like_torch_save(path):
            raise WeightsFileError(
                f"expected safetensors or a file written by torch.save, got something else: {path}"
            ) from error
        raise WeightsFileError(
            f"refused to read {path}: it has more than tensors and plain values, and reading "
            f"that would run code of the file's author ({reason(error)}); save a state dict instead"
        ) from error
    except Exception as error:  # a damaged file can make torch raise whatever it likes
        raise WeightsFileError(
            f"expected safetensors or a file written by torch.save, cannot read {path}: "
            f"{reason(error)}"
        ) from error


def starts_like_torch_save(path: Path) -> bool:
    """Whether the file is a zip archive or starts like a pickle."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(path) or file.read(1) == b"\x80"


def reason(error: Exception) -> str:
    """The line of torch's message that says what it met."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    met = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    first = (met or lines or [type(error).__name__])[0]
    return first.removeprefix("WeightsUnpickler error: ").split(" was not an allowed")[0]


def find_state_dict(content: Any, key: str | None, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors that is meant."""
    candidates = dict(state_dicts(content))
    if key is not None:
        if "" in candidates:
            raise WeightsFileError(f"expected no key, as nothing in {path} is nested, got {key!r}")
        if key not in candidates:
            raise WeightsFileError(
                f"expected key to be one of {names(candidates)}, got {key!r}: {path}"
            )
        return candidates[key]
    if len(candidates) == 1 or "" in candidates:
        return candidates.get("") or next(iter(candidates.values()))
    for usual in USUAL_KEYS:
        matches = [name for name in candidates if name.split(".")[-1] == usual]
        if len(matches) == 1:
            return candidates[matches[0]]
    if not candidates:
        raise WeightsFileError(
            f"expected a state dict, found no weights of two dimensions in {path}"
        )
    raise WeightsFileError(
        f"expected one state dict, found {len(candidates)} in {path}: "
        f"pick one with key, one of {names(candidates)}"
    )


def state_dicts(content: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Mappings that have tensors of two or more dimensions, by where they are.

    Keys that are not strings are not followed: an optimizer's state has numbers.
    """
    if not isinstance(content, Mapping):
        return
    tensors = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if any(tensor.ndim >= 2 for tensor in tensors.values()):
        yield prefix, tensors
        return
    for key, value in content.items():
        if isinstance(key, str):
            yield from state_dicts(value, f"{prefix}.{key}".lstrip("."))


def names(candidates: Mapping[str, Any]) -> list[str]:
    """For messages."""
    return sorted(candidates)
