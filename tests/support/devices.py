"""Devices on which a test runs: those marked cuda are skipped where there is no GPU."""

import sys

import pytest

__all__ = ["ON_EVERY_DEVICE", "as_on_an_accelerator"]

ON_EVERY_DEVICE = pytest.mark.parametrize(
    "device",
    ["cpu", "cpu as an accelerator", pytest.param("cuda", marks=pytest.mark.cuda)],
    indirect=True,
)


def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let core go on as where the host should not wait, on the CPU, too."""
    from mhe_core.energy import _waits

    for name, module in list(sys.modules.items()):
        if name.startswith("mhe_core.") and hasattr(module, "waits_are_dear"):
            monkeypatch.setattr(module, "waits_are_dear", lambda device: not _waits._careful.get())
