"""Layers computed together have the terms and gradients that each has by itself."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from mhe_core import NetworkRegularizer
from mhe_core.energy import _tiles
from mhe_core.network import _batching
from support.devices import ON_EVERY_DEVICE
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

REGULARIZERS = {
    "mhe": {},
    "half_mhe": {},
    "comhe_random": {"projection_dim": 6, "num_projections": 3, "seed": 0},
    "comhe_angle": {"projection_dim": 6, "seed": 0},
    "comhe_adversarial": {"projection_dim": 6, "seed": 0},
    "comhe_group": {"num_groups": 2, "group_dim": 6, "seed": 0},
}


def network(device: str = "cpu") -> nn.ModuleDict:
    """Layers of as many neurons in different dimensions, grouped ones, and tiny rows."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({f"linear{k}": nn.Linear(7 + 3 * k, 9) for k in range(4)})
    layers.update({f"like{k}": nn.Linear(12, 9) for k in range(2)})
    layers.update({f"grouped{k}": nn.Conv2d(6, 8, 3 + k, groups=2) for k in range(2)})
    layers["head"] = nn.Linear(9, 5)
    with torch.no_grad():
        layers["linear1"].weight[3] *= 1e-6  # whose gradient is clipped
        layers["linear2"].weight[4] = 0
    return layers.to(device).double()


@ON_EVERY_DEVICE
@pytest.mark.parametrize("clip_factor", [None, 1.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_terms_and_gradients_are_those_of_single_layers(
    device, monkeypatch, name, reduction, clip_factor
):
    model = network(device)
    regularizer = NetworkRegularizer(
        model, name, "mhe", hidden_options=REGULARIZERS[name],
        clip_factor=clip_factor, reduction=reduction, hidden_weight=0.3,
        rules={"like*": {"weight": lambda step: 0.5}, "linear3": {"weight": 2.0}},
    ).to(device)  # fmt: skip
    regularizer.update(0.1)
    found = []
    for alone in (False, True):
        if alone:
            monkeypatch.setattr(_batching, "batch_of", lambda layer: layer.name)
        model.zero_grad()
        (regularizer() / 7).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append([regularizer.weighted_terms(), *gradients])
    together, alone = found
    assert list(together[0]) == list(alone[0])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


VIEWS = {
    *("view", "transpose", "t", "slice", "select", "unsqueeze", "squeeze", "expand", "detach"),
    *("_unsafe_view", "alias", "as_strided", "split", "unbind", "diagonal", "permute"),
    *("promote_types", "new_empty"),
}


class Operations(TorchDispatchMode):
    """Counts what an accelerator would be given to do."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def number(self) -> int:
        return sum(n for name, n in self.counts.items() if name not in VIEWS)


@pytest.mark.parametrize("device", ["cpu as an accelerator"], indirect=True)
@pytest.mark.parametrize(
    ("name", "options", "most"),
    [
        ("half_mhe", {}, 12),
        ("comhe_random", {"projection_dim": 40, "num_projections": 3, "seed": 0}, 45),
    ],
    ids=["half_mhe", "comhe_random"],
)
@pytest.mark.usefixtures("device")
def test_an_accelerator_has_few_operations_a_layer(monkeypatch, name, options, most):
    """Of a transformer's 48 layers; each by itself would take 70 and 150 operations."""
    monkeypatch.setattr(_tiles, "ROWS_ON_CPU", _tiles.ROWS)
    monkeypatch.setattr(_tiles, "ENTRIES_ON_CPU", _tiles.ENTRIES)
    torch.manual_seed(0)
    shapes = [(144, 48), (48, 48), (192, 48), (48, 192)]
    model = nn.Sequential(*(nn.Linear(d, N) for _ in range(12) for N, d in shapes))
    regularizer = NetworkRegularizer(model, name, output=None, hidden_options=options)
    regularizer.update(0.1)
    with Operations() as operations:
        regularizer().backward()
    assert operations.number / 48 < most
