import pytest
import torch
from mhe_core.registry import GROUP
from support import distributions
from support.devices import as_on_an_accelerator
from support.forks import run_processes
from torch import nn


@pytest.fixture
def device(request, monkeypatch) -> str:
    """A device of ON_EVERY_DEVICE."""
    if request.param.endswith("accelerator"):
        as_on_an_accelerator(monkeypatch)
    return request.param.split()[0]


@pytest.fixture
def small_network():
    """Make a convolutional network of four classes; layers by keyword go between the two."""

    def make(**between: nn.Module) -> nn.Sequential:
        model = nn.Sequential()
        model.add_module("conv", nn.Conv2d(3, 8, 3))
        model.add_module("norm", nn.BatchNorm2d(8))
        model.add_module("relu", nn.ReLU())
        for name, module in between.items():
            model.add_module(name, module)
        model.add_module("pool", nn.AdaptiveAvgPool2d(1))
        model.add_module("flat", nn.Flatten())
        model.add_module("head", nn.Linear(8, 4))
        return model

    return make


@pytest.fixture(scope="session")
def write_distribution():
    """Lay a distribution of regularizers out in a folder as an installer would."""

    def write(folder, name, targets, modules=None, **described):
        return distributions.write_distribution(
            folder, name, {GROUP: targets}, modules, **described
        )

    return write


@pytest.fixture(scope="module", params=[2, 3])
def found(request, tmp_path_factory):
    """What each of 2 and 3 processes found, for which the test's own file is the program.

    It is given a folder, in which the process of rank k saves k.pt.
    """
    folder = tmp_path_factory.mktemp("processes")
    run_processes(request.param, request.path, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]
