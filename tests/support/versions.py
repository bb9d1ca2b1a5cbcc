"""What tests need of the versions that are installed."""

from __future__ import annotations

import pytest
import torch

__all__ = ["FIRST_TORCH", "fsdp2"]

# The oldest torch that is supported.
FIRST_TORCH = torch.__version__.startswith("2.6.")

fsdp2 = pytest.mark.skipif(FIRST_TORCH, reason="torch 2.6 has FSDP2 on accelerators only")
