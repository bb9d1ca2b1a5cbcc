"""Checkpoints of several files: shards with an index, folders of torch.distributed.checkpoint."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from enum import Enum, EnumMeta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhe_core.diagnostics._checkpoint import Checkpoint, WeightsFileError

__all__ = ["distributed_checkpoint", "file_of_folder", "is_distributed", "sharded"]

# What a folder's weights are called, best first; then any one file with such a suffix.
USUAL_FILES = (
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "model.safetensors",
    "pytorch_model.bin",
)
SUFFIXES = (".index.json", ".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def file_of_folder(folder: Path) -> Path:
    """The file that holds a folder's weights, or the index of those that do.

    Raises:
        WeightsFileError: if there is none, or several and no index.
    """
    for name in USUAL_FILES:
        if (folder / name).exists():
            return folder / name
    files = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    indexes = [path for path in files if path.name.endswith(".index.json")]
    if len(indexes) == 1 or len(files) == 1:
        return (indexes or files)[0]
    names = [path.name for path in files]
    raise WeightsFileError(
        f"expected a folder with one weights file or an index, got {names}: {folder}"
    )


def sharded(index: Path, opened: Callable[[Path], Checkpoint]) -> Checkpoint:
    """The tensors of all shards that an index names; one shard is open at a time.

    Args:
        index: a JSON file with a ``weight_map`` from names to files beside it.
        opened: opens one shard.
    """
    try:
        places = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsFileError(f"expected an index with a weight_map, got {index}") from error
    outside = [shard for shard in shards if Path(shard).name != shard]
    missing = [shard for shard in shards if not (index.parent / shard).exists()]
    if outside or missing:
        raise WeightsFileError(f"expected the files that {index} names beside it, not found: "
                               f"{', '.join(outside or missing)}")  # fmt: skip
    current: dict[str, Checkpoint] = {}

    def read(name: str) -> Tensor:
        shard = places[name]
        if shard not in current:
            current.clear()
            current[shard] = opened(index.parent / shard)
        if name not in current[shard]:
            raise WeightsFileError(f"expected {name!r} in {index.parent / shard}, as {index} says")
        return current[shard][name]

    return Checkpoint({name: partial(read, name) for name in places})


def is_distributed(folder: Path) -> bool:
    """Whether torch.distributed.checkpoint wrote the folder."""
    return (folder / ".metadata").is_file()


RECORDS = (
    *(f"{kind}StorageMetadata" for kind in ("Tensor", "Bytes", "Chunk")),
    *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
)
KNOWN = {
    *(("torch.distributed.checkpoint.metadata", name) for name in RECORDS),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    *((module, "PosixPath") for module in ("pathlib", "pathlib._local")),
}


class _Metadata(pickle.Unpickler):
    """Reads the plain records of torch.distributed.checkpoint, and nothing that runs code."""

    def find_class(self, module: str, name: str) -> Any:
        """One of the known names, or a dtype."""
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in KNOWN:
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return member
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def member(kind: Any, name: str) -> Enum:
    """The member of an enumeration: Python 3.11's first releases write it as a getattr."""
    if not isinstance(kind, EnumMeta):
        raise pickle.UnpicklingError(f"GLOBAL builtins.getattr of {kind!r}")
    found: Enum = kind[name]
    return found


def distributed_checkpoint(folder: Path) -> Checkpoint:
    """The whole tensors of a folder that torch.distributed.checkpoint wrote, by full names."""
    try:
        with (folder / ".metadata").open("rb") as file:
            metadata: Any = _Metadata(file).load()
        entries, places = metadata.state_dict_metadata, metadata.storage_data
    except Exception as error:  # whatever a damaged or hostile pickle makes of it
        raise WeightsFileError(f"refused to read {folder / '.metadata'}: {error}") from error

    def read(name: str) -> Tensor:
        entry = entries[name]
        whole = torch.empty(entry.size, dtype=entry.properties.dtype)
        found = {tuple(index.offset): info for index, info in places.items() if index.fqn == name}
        for chunk in entry.chunks:
            part = whole
            for dim, (start, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
                part = part.narrow(dim, start, size)
            part.copy_(_stored(folder, found[tuple(chunk.offsets)]))
        return whole

    tensors = [name for name, entry in entries.items() if hasattr(entry, "chunks")]
    return Checkpoint({name: partial(read, name) for name in tensors})


def _stored(folder: Path, info: Any) -> Tensor:
    """One chunk, which torch.save wrote into a part of a file."""
    if Path(info.relative_path).name != info.relative_path:
        raise WeightsFileError(f"expected a file in {folder}, got {info.relative_path}")
    with (folder / info.relative_path).open("rb") as file:
        file.seek(info.offset)
        data = io.BytesIO(file.read(info.length))
    tensor: Tensor = torch.load(data, map_location="cpu", weights_only=True)
    return tensor
