"""``--compile``: torch.compile of the networks that are trained."""

from __future__ import annotations

import torch
from torch import nn

from mhe_core.errors import UserError

__all__ = ["check_compiler", "compiled"]


def compiled(network: nn.Module, wanted: bool, device: torch.device) -> nn.Module:
    """The network as its training steps are to call it.

    The parameters are the network's own, so that regularizers, averages and checkpoints keep to
    ``network``, with plain names, and evaluation needs no compiled graphs of other shapes. To be
    given to ``accelerator.prepare``, which puts other wrappers around it.

    Args:
        network: on its device.
        wanted: whether ``--compile`` was given; if not, ``network`` itself is returned.
        device: where it will run.

    Raises:
        UserError: if torch can compile nothing for the device here.
    """
    if not wanted:
        return network
    check_compiler(device)
    return torch.compile(network)  # type: ignore[return-value]  # of a module, a module


def check_compiler(device: torch.device) -> None:
    """Compile a small function, as torch looks for a compiler when it needs one, in a step.

    Raises:
        UserError: if it cannot; torch's own error is its cause.
    """
    try:
        torch.compile(_small)(torch.ones(8, device=device))
    except Exception as error:  # torch raises many types, some of them private
        needed = "Triton" if device.type == "cuda" else "a C++ compiler, such as g++, or CXX"
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--compile: torch.compile does not work here for {device.type}: expected {needed}; "
            f"got {type(error).__name__}: {reason}"
        ) from error


def _small(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
