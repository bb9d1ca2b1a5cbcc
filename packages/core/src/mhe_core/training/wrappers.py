"""State dicts without what wrappers add to the names: saved from inside, loaded into the inside.

DistributedDataParallel and timm's ModelEmaV3 put ``module.`` before every name, torch.compile
``_orig_mod.``, also within a name. What is saved here has none of these, and what was saved with
them loads all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["load_state", "state_of"]

COMPILED = "_orig_mod"
WRAPPED = {"module", COMPILED}


def state_of(part: Any) -> dict[str, Any]:
    """The state of a module, without its wrappers; of anything else, its ``state_dict()``."""
    if not isinstance(part, nn.Module):
        state: dict[str, Any] = part.state_dict()
        return state
    return {_plain(name): value for name, value in _inside(part).state_dict().items()}


def load_state(part: Any, saved: Mapping[str, Any]) -> None:
    """Load what :func:`state_of` returned, or a wrapper's own ``state_dict()``.

    Raises:
        RuntimeError: if a module's state does not fit.
    """
    if not isinstance(part, nn.Module):
        part.load_state_dict(saved)
        return
    inside = _inside(part)
    names = {_plain(name): name for name in saved}
    while (
        names
        and all(name.startswith("module.") for name in names)
        and "module" not in dict(inside.named_children())
    ):
        names = {name.removeprefix("module."): saved_name for name, saved_name in names.items()}
    own = {}
    if any(COMPILED in name.split(".") for name, _ in inside.named_modules()):
        own = {_plain(name): name for name in inside.state_dict()}
    inside.load_state_dict({own.get(name, name): saved[old] for name, old in names.items()})


def _inside(module: nn.Module) -> nn.Module:
    """The module within those that have it as their only child, and nothing of their own."""
    while True:
        children = dict(module.named_children())
        owned = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if len(children) != 1 or owned or not WRAPPED & set(children):
            return module
        (module,) = children.values()


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != COMPILED)
