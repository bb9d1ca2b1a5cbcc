"""What a compiled program is to leave alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

__all__ = ["eagerly", "opaque_operator"]

T = TypeVar("T")


# Not by torch.compiler.disable, which imports the compiler (seconds) as soon as it is applied; the
# decorator of torch's own optimizers and checkpointing does so when it is called.
@torch._disable_dynamo
def eagerly(function: Callable[..., T], *arguments: object) -> T:
    """The function's result; in a compiled program, at one break of its graph."""
    return function(*arguments)


def opaque_operator(
    name: str, schema: str, changes: Sequence[str] = ()
) -> Callable[[Callable[..., object]], CustomOpDef]:
    """A decorator: the function as an operator that compiled programs call as it is.

    It may ask the device for numbers, so that no CUDA graph can record it (as mode
    ``"reduce-overhead"`` would): from torch 2.8 on the compiler records what is around it.

    Args:
        name: with its namespace.
        schema: of arguments and results, written out: torch 2.6 cannot infer it from annotations
            that are strings.
        changes: arguments that it writes to.
    """
    tag = getattr(torch.Tag, "cudagraph_unsafe", None)
    tags: dict[str, Any] = {} if tag is None else {"tags": (tag,)}
    return torch.library.custom_op(name, mutates_args=tuple(changes), schema=schema, **tags)
