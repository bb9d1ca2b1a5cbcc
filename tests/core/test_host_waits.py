"""How often the host would wait for an accelerator, counted on the CPU with its path forced on."""

import pytest
import torch
from mhe_core import NetworkRegularizer
from support.devices import as_on_an_accelerator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Counts what depends on numbers that have to be read back from a tensor."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.masked_select.default,
        )
        return func(*args, **(kwargs or {}))


@pytest.fixture
def lists(monkeypatch):
    """One entry for each tensor that was read back as a list, which no dispatch mode sees."""
    as_on_an_accelerator(monkeypatch)
    found, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: found.append(1) or tolist(x))
    return found


@pytest.mark.parametrize(
    ("hidden", "options", "update"),
    [
        ("half_mhe", {}, (0, 0)),
        ("comhe_random", {"projection_dim": 40, "num_projections": 3, "seed": 0}, (50, 0)),
        ("comhe_angle", {"projection_dim": 40, "seed": 0}, (0, 0)),
        ("comhe_group", {"num_groups": 3, "group_dim": 40, "seed": 0}, (0, 0)),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_network_of_fifty_layers_waits_once_in_forward_and_never_in_backward(
    lists, hidden, options, update
):
    """Each layer has a shape of its own; the one wait is for the list of what is in doubt.

    That comhe_random reads its count of updates stalls nothing: it is always on the CPU.
    """
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(60 + k, 41 + k) for k in range(51)))
    regularizer = NetworkRegularizer(model, hidden, "mhe", hidden_options=options)
    regularizer()  # a potential's own constants are read once in a process, from the CPU
    lists.clear()
    with Waits() as updating:
        regularizer.update(0.1)
    assert (updating.count, len(lists)) == update
    with Waits() as forward:
        value = regularizer()
    assert (forward.count, len(lists)) == (0, 1)
    with Waits() as backward:
        value.backward()
    assert (backward.count, len(lists)) == (0, 1)
