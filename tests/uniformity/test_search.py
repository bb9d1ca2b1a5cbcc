"""Nearest neighbours found in tiles, against all distances at once."""

import re
import sys

import pytest
import torch
from mhe_core import create_regularizer
from mhe_uniformity import _pairs, _search
from mhe_uniformity._search import nearest_neighbours
from support.programs import run_program


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.manual_seed(seed), dtype=dtype)


@pytest.fixture
def small_tiles(monkeypatch):
    """So that few neurons fill many tiles, the last ones partly."""
    monkeypatch.setattr(_search, "ROWS_ON_CPU", 4)
    monkeypatch.setattr(_search, "ENTRIES_ON_CPU", 16)
    monkeypatch.setattr(_pairs, "ENTRIES", 40)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("half_space", [False, True])
@pytest.mark.parametrize("N", [2, 4, 5, 8, 19])
def test_neighbours_are_the_nearest(N, half_space):
    x = normal(N, 3)
    lengths = x.norm(dim=1)
    cosines = (x / lengths[:, None]) @ (x / lengths[:, None]).T
    cosines = (cosines.abs() if half_space else cosines).fill_diagonal_(-torch.inf)
    index, best = nearest_neighbours(x, 1 / lengths, half_space=half_space)
    assert torch.equal(index, cosines.argmax(1))
    torch.testing.assert_close(best, cosines.amax(1))


TILED = [
    ("mhs", {}),
    ("mhs", {"half_space": False}),
    ("mma", {}),
    ("regularface", {}),
    ("koleo", {}),
    ("uniformface", {"variant": "released"}),
    ("hug", {"variant": "released"}),
]


@pytest.mark.parametrize(("name", "options"), TILED)
def test_small_tiles_change_nothing(name, options, request):
    regularizer = create_regularizer(name, 19, 5, **options)
    neurons = normal(19, 5).requires_grad_()
    results = []
    for _ in range(2):
        value = regularizer(neurons)
        results.append((value, *torch.autograd.grad(value, neurons)))
        request.getfixturevalue("small_tiles")
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ["mhs", "mma", "koleo"])
def test_neighbours_too_near_for_a_cosine_in_float32_are_measured(name):
    """Chords of 1e-5: 2 − 2c is 0 in float32."""
    neurons = torch.eye(6)
    neurons[1] = neurons[0] + 1e-5 * neurons[1]
    exact = create_regularizer(name, 6, 6)(neurons.double())
    leaf = neurons.clone().requires_grad_()
    value = create_regularizer(name, 6, 6)(leaf)
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)
    value.backward()
    assert leaf.grad[0, 1] > 0  # downhill, it moves away
    assert leaf.grad[1, 1] < 0


def test_separation_takes_the_nearer_of_pairs_with_equal_cosines_in_float32():
    neurons = torch.eye(6)
    neurons[1] = neurons[0] + 3e-5 * neurons[1]
    neurons[3] = neurons[2] + 1e-5 * neurons[3]
    value = create_regularizer("mhs", 6, 6)(neurons)
    assert value.item() == pytest.approx(-1e-10, rel=1e-4)


PEAK = """
import re, sys, torch
from mhe_core import create_regularizer

def memory(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

def step(name, N):
    neurons = torch.ones(N, 256).normal_().requires_grad_()
    before = memory("VmRSS")
    gradient, = torch.autograd.grad(create_regularizer(name, N, 256)(neurons), neurons)
    return memory("VmHWM") - before

step(sys.argv[1], 64)
print(step(sys.argv[1], 8192))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_the_gradient_and_a_tile():
    """8 MiB of gradient; all cosines would be 256 MiB, all pairs' neurons in float64 32 MiB."""
    printed = run_program(sys.executable, "-c", PEAK, "koleo").stdout
    assert 8 <= float(re.fullmatch(r"([\d.]+)\n", printed)[1]) < 8 + 24
