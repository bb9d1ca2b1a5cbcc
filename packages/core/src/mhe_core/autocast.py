"""Computing in the inputs' own dtypes, whatever autocast is around it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["without_autocast"]


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """A context in which nothing is cast on that kind of device.

    Some kinds, such as the meta device, have no autocast, and refuse to turn it off.
    """
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
