"""Network energies of 2 and 3 processes against those of one.

Run in several processes, this file is the program whose processes save what they found.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mhe_core import NetworkRegularizer, register_regularizer
from mhe_core.energy._pairs import PairMean
from mhe_core.network._batching import Layer
from mhe_core.network._processes import owners
from mhe_core.regularizers import HalfSpaceMHE
from torch import nn


class Orthogonality(nn.Module):
    """A third party's, for neurons [N, d]."""

    def __init__(self, num_neurons, dim):
        super().__init__()

    def forward(self, neurons):
        assert neurons.ndim == 2
        return (neurons @ neurons.mT).square().mean()


class Network(nn.Module):
    """Equal layers, grouped ones, many and few neurons; and one vector that has none."""

    def __init__(self, classes):
        super().__init__()
        self.first = nn.Linear(6, 24)
        self.equal = nn.Sequential(*[nn.Linear(24, 24) for _ in range(5)])
        self.grouped = nn.Conv1d(24, 24, 1, groups=4)
        self.head = nn.Linear(24, classes)

    def forward(self, x):
        x = self.equal(self.first(x)).unsqueeze(-1)
        return self.head(self.grouped(x).squeeze(-1))


CASES = {
    "default": {},
    "angular": {"hidden": "mhe", "hidden_options": {"s": 1, "distance": "angular"}},
    "released": {
        "hidden_options": {"s": 0, "convention": "released_code"},
        "output": "half_mhe",
        "output_options": {"convention": "released_code"},
    },
    "random": {"hidden": "comhe_random", "hidden_options": {"projection_dim": 4}},
    "adversarial": {"hidden": "comhe_adversarial", "hidden_options": {"projection_dim": 4}},
    "third_party": {"hidden": "orthogonality", "output_weight": 0.5},
    "output_only": {"hidden": None},
    "anchors": {"anchors": 64},
}
# Of 1100 class vectors the tiles are shared out, of 10 not; the dtypes' tolerances, relative.
KINDS = [(classes, dtype) for classes in (10, 1100) for dtype in (torch.float32, torch.float64)]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-10}


def build(case, classes, dtype):
    register_regularizer("orthogonality", Orthogonality)
    torch.manual_seed(0)
    model = Network(classes).to(dtype)
    with torch.no_grad():
        model.head.weight[1] = model.head.weight[0] * (1 + 1e-3)  # nearly the same direction
        model.head.weight[1, 0] += 1e-3
    model.equal[2].weight.requires_grad_(case != "random")
    return model, NetworkRegularizer(model, **CASES[case])


def energy(case, classes, dtype):
    """Value and gradients of a network's energy after two updates."""
    model, regularizer = build(case, classes, dtype)
    regularizer.update(0.1)
    regularizer.update(0.1)
    value = regularizer()
    value.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        torch.testing.assert_close(regularizer(), value)
    return value.detach(), gradients, regularizer.state_dict()


def images(rank):
    return torch.full((2, 6), 1.0 + rank, dtype=torch.float64).cumsum(1)


def second_derivative():
    model, regularizer = build("default", 10, torch.float64)
    weights = [model.equal[0].weight, model.head.weight]
    slopes = torch.autograd.grad(regularizer(), weights, create_graph=True)
    along = sum((g * w.detach().flip(0)).sum() for g, w in zip(slopes, weights, strict=True))
    nothing = 0 * sum(w.sum() for w in weights)  # for a process that computes neither layer
    return torch.autograd.grad(along + nothing, weights)


def work():
    """Multiplications in tiles."""
    count = 0
    add = PairMean.add

    def counting(self, a, b):
        nonlocal count
        count += a.neurons.numel() * b.neurons.shape[1] * (2 if a is b else 3)
        add(self, a, b)

    PairMean.add = counting
    try:
        energy("default", 1100, torch.float32)
        large, count = count, 0
        energy("default", 10, torch.float32)
    finally:
        PairMean.add = add
    return large, count


def parallel_step(wrap, backward):
    """Gradients of a step of data-parallel training on images that differ between processes."""
    model, regularizer = build("default", 1100, torch.float64)
    prepared = wrap(model)
    regularizer.update(0.1)
    penalty = regularizer()
    loss = prepared(images(torch.distributed.get_rank())).square().mean()
    backward(loss + penalty)
    return penalty.detach(), [p.grad for p in model.parameters()]


def main(folder):
    from accelerate import Accelerator

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    found = {(case, *kind): energy(case, *kind) for case in CASES for kind in KINDS}
    found["ddp"] = parallel_step(nn.parallel.DistributedDataParallel, torch.Tensor.backward)
    accelerator = Accelerator(cpu=True)
    found["accelerate"] = parallel_step(accelerator.prepare, accelerator.backward)
    found["work"] = work()
    found["second"] = second_derivative()
    if rank == 0:  # alone: neither waits for the others
        model, regularizer = build("default", 10, torch.float64)
        found["terms"] = {k: v.detach() for k, v in regularizer.terms().items()}
        found["alone"] = NetworkRegularizer(model, share_work=False)().detach()
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def assert_close(got, expected, tolerance):
    assert got.shape == expected.shape
    assert (got - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize(("classes", "dtype"), KINDS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_averaged_gradients_are_those_of_one_process(found, case, classes, dtype):
    value, gradients, state = energy(case, classes, dtype)
    # A projection is trained in float32, by each process with its own rounding.
    tolerance = TOLERANCE[torch.float32 if case == "adversarial" else dtype]
    for other, others, _ in (each[case, classes, dtype] for each in found):
        assert torch.equal(other, found[0][case, classes, dtype][0])
        assert other.dtype == value.dtype
        assert_close(other, value, tolerance)
        assert others.keys() == gradients.keys()  # no weight is without a gradient
    for name, gradient in gradients.items():
        mean = sum(each[case, classes, dtype][1][name] for each in found) / len(found)
        assert_close(mean, gradient, tolerance)
    for _, _, own in (each[case, classes, dtype] for each in found):
        for name, tensor in state.items():
            if isinstance(tensor, torch.Tensor):
                torch.testing.assert_close(own[name], tensor)


@pytest.mark.parametrize("launcher", ["ddp", "accelerate"])
def test_data_parallel_training_has_the_gradient_of_one_process(found, launcher):
    model, regularizer = build("default", 1100, torch.float64)
    losses = [model(images(rank)).square().mean() for rank in range(len(found))]
    penalty = regularizer()
    (sum(losses) / len(losses) + penalty).backward()
    for value, gradients in (each[launcher] for each in found):
        assert_close(value, penalty.detach(), 1e-12)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            assert_close(gradient, parameter.grad, 1e-12)


def test_second_derivatives_average_to_those_of_one_process(found):
    for k, expected in enumerate(second_derivative()):
        assert_close(sum(each["second"][k] for each in found) / len(found), expected, 1e-10)


def test_the_work_is_shared_out(found):
    for k, whole in enumerate(work()):
        parts = [each["work"][k] for each in found]
        assert sum(parts) == whole
        assert max(parts) <= 1.35 * whole / len(found)


def test_reports_need_no_other_process(found):
    _, regularizer = build("default", 10, torch.float64)
    torch.testing.assert_close(found[0]["terms"], dict(regularizer.terms()))
    torch.testing.assert_close(found[0]["alone"], regularizer())


def test_equal_layers_are_one_batch(monkeypatch):
    calls = []
    whole = PairMean.add
    monkeypatch.setattr(
        PairMean, "add", lambda self, a, b: (calls.append(a.neurons.shape), whole(self, a, b))
    )
    _, regularizer = build("default", 10, torch.float32)
    terms = regularizer.terms()
    assert sorted(calls) == [(1, 10, 24), (1, 24, 6), (4, 6, 6), (5, 24, 24)]
    assert list(terms) == ["first", *[f"equal.{k}" for k in range(5)], "grouped", "head"]
    for k in range(5):
        neurons = regularizer._weight(f"equal.{k}").neurons()
        torch.testing.assert_close(terms[f"equal.{k}"], HalfSpaceMHE(24, 24)(neurons))


def test_layers_go_to_the_process_with_least_to_do():
    sizes = [8, 8, 4, 4, 4, 4, 64]
    layers = [Layer(str(k), HalfSpaceMHE(N, 2), torch.ones(N, 2)) for k, N in enumerate(sizes)]
    assert owners(layers, 2) == [0, 1, 0, 1, 0, 1, None]
    layers[-1] = replace(layers[-1], regularizer=Orthogonality(64, 2))
    assert owners(layers, 2) == [1, 1, 1, 1, 1, 1, 0]


if __name__ == "__main__":
    main(sys.argv[1])
