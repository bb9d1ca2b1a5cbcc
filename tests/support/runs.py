"""Reading run directories, and telling whether two runs are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from mhe_core.training.checkpoint import load_checkpoint

__all__ = ["assert_same_run", "flat", "records", "state"]


def records(run: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, but for the wall clock's figures."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if not k.endswith("_seconds")} for x in lines]


def state(run: Path, name: str = "last") -> dict[str, Any]:
    """What a checkpoint holds of models, optimizers, …, by name."""
    return load_checkpoint(run / "checkpoints" / name)["state"]


def flat(content: Any) -> dict[str, Any]:
    """Every tensor and value of nested containers, by its path in them."""
    pairs, _ = torch.utils._pytree.tree_flatten_with_path(content)
    return {torch.utils._pytree.keystr(path): value for path, value in pairs}


def assert_same_run(run: Path, other: Path) -> None:
    """Both have the same records, and to the bit the same state at their end."""
    assert records(run) == records(other)
    ours, theirs = flat(state(run)), flat(state(other))
    assert ours.keys() == theirs.keys()
    assert any(isinstance(value, torch.Tensor) for value in ours.values())
    differing = [name for name, value in ours.items() if not _equal(value, theirs[name])]
    assert differing == []


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    return a == b
