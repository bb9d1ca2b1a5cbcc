"""The published programs' outputs, and the settings that reproduce them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mhe_core import create_regularizer

SHAPES = ("2x3", "5x8", "30x9", "12x45", "300x3", "2x600")

# Of each name|program of the vectors: our name and hyperparameters.
SETTINGS = {
    "MHS|half": ("mhs", {"variant": "released", "half_space": True}),
    "MHS|full": ("mhs", {"variant": "released", "half_space": False}),
    "MHP|half": ("mhp", {"variant": "released", "half_space": True}),
    "MHP|full": ("mhp", {"variant": "released", "half_space": False}),
    "MHC|half": ("mhc", {"variant": "released", "half_space": True}),
    "MHC|full": ("mhc", {"variant": "released", "half_space": False}),
    "RMHP|full": ("rmhp", {"variant": "released"}),
    "MGD|half": ("mgd", {"variant": "released", "half_space": True}),
    "MGD|full": ("mgd", {"variant": "released", "half_space": False}),
    "MMA|pytorch": ("mma", {"variant": "released"}),
    "REGULARFACE|pml": ("regularface", {"variant": "released"}),
    "REGULARFACE|author": ("regularface", {"variant": "released"}),
    "UNIFORMFACE|katsumo": ("uniformface", {"variant": "released"}),
    "KOLEO|lightly": ("koleo", {"variant": "lightly"}),
    "KOLEO|spreadingvectors": ("koleo", {"variant": "spreadingvectors"}),
    "UNIFORMITY|t1": ("uniformity", {"t": 1.0}),
    "UNIFORMITY|t2": ("uniformity", {"t": 2.0}),
    "HUG|mhe": ("hug", {"variant": "released"}),
    "SRIP|imagenet": ("srip", {"variant": "imagenet"}),
    "SRIP|wideresnet": ("srip", {"variant": "wideresnet"}),
    "SRIP|keras": ("srip", {"variant": "keras"}),
    "SRIP|inclearn-exact": ("srip", {"variant": "exact"}),
    "SRIP|inclearn-exact-neurons": ("srip", {"variant": "exact", "side": "neurons"}),
    "DSO|inclearn-squared": ("dso", {"squared": True}),
    "DSO|inclearn": ("dso", {"squared": False}),
    "MC|inclearn": ("mc", {"side": "dims"}),
    "MC|inclearn-neurons": ("mc", {"side": "neurons"}),
    "SO|formula-neurons": ("so", {}),
}


@pytest.fixture(scope="session")
def stored():
    """Outputs of the published programs in float64, by ``NAME|program|NxD/quantity``.

    The neurons, which all programs were given, are under ``NxD/neurons``.
    """
    with np.load(Path(__file__).with_name("vectors.npz")) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.fixture(params=SETTINGS)
def program(request):
    return request.param


@pytest.fixture(params=SHAPES)
def shape(request):
    return request.param


@pytest.fixture
def reproduce(stored):
    """Make the regularizer of a program and shape, in float64, with the program's state."""

    def make(program, shape, **options):
        name, hyperparameters = SETTINGS[program]
        neurons = stored[f"{shape}/neurons"]
        regularizer = create_regularizer(name, *neurons.shape, **{**hyperparameters, **options})
        regularizer.double()
        for buffer in ("poles", "start"):
            if f"{program}|{shape}/{buffer}" in stored:
                getattr(regularizer, buffer).copy_(stored[f"{program}|{shape}/{buffer}"])
        return regularizer, neurons.clone().requires_grad_()

    return make
