"""Energies of rows that 2 and 3 processes hold against those of all rows in one.

Run in several processes, this file is the program whose processes save what they found.
"""

from __future__ import annotations

import itertools
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from mhe_core import (
    class_uniformity,
    feature_energy,
    feature_uniformity,
    hyperspherical_energy,
    sharded_hyperspherical_energy,
)
from torch import distributed as dist

SIZES = {"uneven": (3, 600, 40), "single": (1, 1, 2), "even": (20, 20, 20)}
OPTIONS = [
    {"s": s, "distance": distance, "half_space": half_space, "convention": convention}
    for s, distance, half_space, convention in itertools.product(
        (0.0, 1.0, 2.0), ("euclidean", "angular"), (False, True), ("paper", "released_code")
    )
]
FEATURES = {"energy": partial(feature_energy, s=1.0), "uniformity": feature_uniformity}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}


def rows(sizes, dtype=torch.float64, longest=1.0):
    """All processes' rows; the first and last nearly the same, the second of any length."""
    torch.manual_seed(0)
    x = torch.randn(sum(sizes), 12, dtype=torch.float64)
    x[-1] = x[0] * 3
    x[-1, 0] += 1e-4
    x[1] *= longest
    return x.to(dtype)


def cases(ranks):
    """Name, sizes, rows and options of each comparison."""
    for (name, sizes), options in itertools.product(SIZES.items(), OPTIONS):
        key = (name, *options.values())
        yield key, sizes[:ranks], rows(sizes[:ranks]), options
    uneven = SIZES["uneven"][:ranks]
    for dtype in (torch.float32, torch.bfloat16):
        yield dtype, uneven, rows(uneven, dtype), {"half_space": True}
    for length in (1e30, 1e-30, 0.0):
        yield length, uneven, rows(uneven, torch.float32, length), {"half_space": True}


def main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    found = {}
    for key, sizes, x, options in cases(ranks):
        own = x.split(sizes)[rank].clone().requires_grad_()
        value = sharded_hyperspherical_energy(own, **options)
        (3 * value).backward()
        with torch.no_grad():
            assert torch.equal(sharded_hyperspherical_energy(own, **options), value)
        found[key] = value.detach(), own.grad

    sizes = SIZES["uneven"][:ranks]
    x, labels = rows(sizes, longest=3.0), torch.arange(sum(sizes)) % 7
    own = x.split(sizes)[rank].clone().requires_grad_()
    for name, energy in FEATURES.items():
        value = energy(own)
        found[name] = value.detach(), torch.autograd.grad(value, own)[0]
    found["classes"] = class_uniformity(own, labels.split(sizes)[rank])

    own = rows((4,)).requires_grad_()
    value = sharded_hyperspherical_energy(own)
    with pytest.raises(RuntimeError, match="got create_graph=True"):
        torch.autograd.grad(value, own, create_graph=True)
    with pytest.raises(ValueError, match=r"one dimension on all processes, got \[2, 3"):
        sharded_hyperspherical_energy(torch.ones(3, rank + 2))

    pair = dist.new_group([0, ranks - 1])  # ranks in the group are not those of all
    if rank in (0, ranks - 1):
        own = rows((4, 4)).split(4)[rank > 0].requires_grad_()
        value = sharded_hyperspherical_energy(own, group=pair)
        found["group"] = value.detach(), torch.autograd.grad(value, own)[0]
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def assert_close(got, expected, tolerance):
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert (got - expected).double().norm() <= tolerance * expected.double().norm()


def test_value_and_gradient_are_those_of_all_rows_in_one_process(found):
    for key, sizes, x, options in cases(len(found)):
        x.requires_grad_()
        expected = hyperspherical_energy(x, **options)
        (3 * expected).backward()
        for (value, gradient), part in zip(
            (each[key] for each in found), x.grad.split(sizes), strict=True
        ):
            assert torch.equal(value, found[0][key][0])
            assert_close(value, expected.detach(), min(1e-6, TOLERANCE[x.dtype]))
            assert_close(gradient, part, TOLERANCE[x.dtype])


@pytest.mark.parametrize("name", FEATURES)
def test_features_have_gradients_to_be_averaged(name, found):
    sizes = SIZES["uneven"][: len(found)]
    x = rows(sizes, longest=3.0).requires_grad_()
    expected = FEATURES[name](x)  # in one process
    expected.backward()
    for each, part in zip(found, x.grad.split(sizes), strict=True):
        value, gradient = each[name]
        assert_close(value, expected.detach(), 1e-12)
        assert_close(gradient / len(found), part, 1e-12)


def test_class_means_are_those_of_all_processes(found):
    sizes = SIZES["uneven"][: len(found)]
    expected = class_uniformity(rows(sizes, longest=3.0), torch.arange(sum(sizes)) % 7)
    for each in found:
        assert_close(each["classes"], expected, 1e-12)


def test_a_group_of_some_of_the_processes(found):
    x = rows((4, 4)).requires_grad_()
    expected = hyperspherical_energy(x)
    expected.backward()
    for each, part in zip((found[0], found[-1]), x.grad.split(4), strict=True):
        value, gradient = each["group"]
        assert_close(value, expected.detach(), 1e-12)
        assert_close(gradient, part, 1e-12)


def test_one_process_holds_all_rows():
    x = rows((9,)).requires_grad_()
    assert torch.equal(sharded_hyperspherical_energy(x, s=1), hyperspherical_energy(x, s=1))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 4)])
def test_rows_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected .*rows"):
        sharded_hyperspherical_energy(torch.ones(shape))


if __name__ == "__main__":
    main(sys.argv[1])
