"""How often the host would wait for an accelerator, counted on the CPU with its path forced on."""

import sys

import pytest
import torch
from mhe_core import NetworkRegularizer
from mhe_core.energy import _waits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Counts the numbers that are read back from a tensor."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def _as_on_an_accelerator(monkeypatch):
    for name, module in list(sys.modules.items()):
        if name.startswith("mhe_core.") and hasattr(module, "waits_are_dear"):
            monkeypatch.setattr(module, "waits_are_dear", lambda device: not _waits._careful.get())


@pytest.mark.usefixtures("_as_on_an_accelerator")
def test_a_network_of_fifty_layers_waits_once_in_forward_and_never_in_backward(monkeypatch):
    """Each layer has a shape of its own; the one wait is for the list of what is in doubt."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(40 + k, 41 + k) for k in range(50)))
    regularizer = NetworkRegularizer(model, hidden="half_mhe", output="mhe")
    regularizer()  # a potential's own constants are read once in a process, from the CPU
    lists, tolist = [], torch.Tensor.tolist  # which no dispatch mode sees
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: lists.append(1) or tolist(x))
    with Waits() as forward:
        value = regularizer()
    assert (forward.count, len(lists)) == (0, 1)
    with Waits() as backward:
        value.backward()
    assert (backward.count, len(lists)) == (0, 1)
