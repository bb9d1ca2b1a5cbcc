"""The bound on the penalty's gradient does not act in the published recipe."""

from __future__ import annotations

import pytest
import timm
import torch
from mhe_classification import models  # noqa: F401  registers vgg9
from mhe_core import NetworkRegularizer
from torch import nn


def weights_after(steps: int, width: float, batch: int, **options: object) -> list[torch.Tensor]:
    """Weights of vgg9 after steps of SGD as the published program takes them."""
    torch.manual_seed(0)
    model = timm.create_model("vgg9", num_classes=10, width=width)
    regularizer = NetworkRegularizer(model, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    images, labels = torch.randn(batch, 3, 32, 32), torch.arange(batch) % 10
    for _ in range(steps):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(images), labels) + regularizer()).backward()
        optimizer.step()
    return list(model.parameters())


@pytest.mark.parametrize(
    "width", [0.25, pytest.param(1.0, marks=pytest.mark.slow, id="full width")]
)
@pytest.mark.parametrize("convention", ["paper", "released_code"])
def test_first_steps_of_vgg9_keep_their_bits(width, convention):
    options = {"convention": convention}
    given = {"hidden_options": options, "output_options": options}
    clipped, exact = (
        weights_after(4, width, 16, clip_factor=clip_factor, **given) for clip_factor in (1.0, None)
    )
    assert all(torch.equal(a, b) for a, b in zip(clipped, exact, strict=True))
