"""Autograd functions whose signature PyTorch need not find out at each call."""

from __future__ import annotations

import inspect
from typing import TypeVar

import torch

__all__ = ["signature_kept"]

Function = TypeVar("Function", bound="type[torch.autograd.Function]")


def signature_kept(function: Function) -> Function:
    """A decorator for an autograd function that defines ``setup_context``.

    For such a one, ``apply`` asks :func:`inspect.signature` what defaults ``forward`` has, which
    takes longer than the energy of a small layer. It answers at once where it was asked before.
    """
    forward = function.forward
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return function
