"""What a compiled program is to leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["eagerly"]

T = TypeVar("T")


# Not by torch.compiler.disable, which imports the compiler (seconds) as soon as it is applied; the
# decorator of torch's own optimizers and checkpointing does so when it is called.
@torch._disable_dynamo
def eagerly(function: Callable[..., T], *arguments: object) -> T:
    """The function's result; in a compiled program, at one break of its graph."""
    return function(*arguments)
