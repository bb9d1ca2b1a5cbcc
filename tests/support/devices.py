"""Devices on which a test runs: those marked cuda are skipped where there is no GPU."""

import pytest

__all__ = ["ON_EVERY_DEVICE"]

ON_EVERY_DEVICE = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
)
