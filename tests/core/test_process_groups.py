"""Groups of processes that each train a model of their own.

Run in several processes, this file is the program whose processes save what they found.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mhe_core import NetworkRegularizer
from support.forks import run_processes
from torch import distributed as dist
from torch import nn
from torch.distributed.algorithms.join import Join


def build(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 700)).double()


def penalty_and_gradients(model: nn.Module, **options: object) -> tuple:
    penalty = NetworkRegularizer(model, **options)()
    penalty.backward()
    return penalty.detach(), [p.grad for p in model.parameters() if p.ndim == 2]


def one_projection_a_pair(rank: int, group: dist.ProcessGroup) -> tuple:
    """Projections drawn without a seed, of layers of another dimension in each group."""
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(6 + rank // 2, 12))
    options = {"projection_dim": 3, "seed": None}
    regularizer = NetworkRegularizer(
        model, output="comhe_random", output_options=options, group=group
    )
    regularizer.update(0.1)
    alone = NetworkRegularizer(
        model, output="comhe_random", output_options=options, share_work=False
    )
    alone.update(0.1)
    return tuple(next(iter(r.regularizers.values())).projection for r in (regularizer, alone))


class WithPenalty(nn.Module):
    """A network that returns its penalty, and does not use one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.network = build(0)
        self.penalty = NetworkRegularizer(self.network)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.network[2](self.network[0](x)), self.penalty()


def unused_layer() -> list[torch.Tensor]:
    model = nn.parallel.DistributedDataParallel(WithPenalty(), find_unused_parameters=True)
    for _ in range(2):
        model.zero_grad()
        output, penalty = model(torch.ones(2, 6, dtype=torch.float64))
        (output.square().mean() + penalty).backward()
    return [p.grad for p in model.parameters()]


# Fewer layers than processes: the tiles of a layer shared out, or a layer whole to one of them.
FEW = {
    "tiles": ([6, 12], {}),
    "whole": ([6, 12], {"output": "comhe_random", "output_options": {"projection_dim": 3}}),
    "two": ([6, 12, 9], {"hidden": "comhe_random", "hidden_options": {"projection_dim": 3}}),
}


def fewer_layers(how: str, wrap: Callable[[nn.Module], nn.Module]) -> tuple:
    """Penalty and gradients of two steps, the second from where the first has led."""
    widths, options = FEW[how]
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(*layers).double()
    prepared, regularizer = wrap(model), NetworkRegularizer(model, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for _ in range(2):
        optimizer.zero_grad()
        regularizer.update(0.1)
        penalty = regularizer()
        (prepared(torch.ones(2, 6, dtype=torch.float64)).square().mean() + penalty).backward()
        optimizer.step()
        found.append((penalty.detach(), [p.grad for p in model.parameters()]))
    return tuple(found)


def joined(rank: int) -> list[torch.Tensor]:
    """Two steps of the first process, one of the second, none of the third."""
    model = nn.parallel.DistributedDataParallel(build(0))
    penalty = NetworkRegularizer(model, share_work=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Join([model]):
        for _ in range(2 - rank):
            optimizer.zero_grad()
            (model(torch.ones(2, 6, dtype=torch.float64)).square().mean() + penalty()).backward()
            optimizer.step()
    return [p.detach() for p in model.parameters()]


def main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    pair, single = dist.new_group([0, 1]), dist.new_group([2])
    mine, other = (pair, single) if rank < 2 else (single, pair)
    found = {"given": penalty_and_gradients(build(rank // 2), group=mine)}
    parallel = nn.parallel.DistributedDataParallel(build(rank // 2), process_group=mine)
    found["ddp"] = penalty_and_gradients(parallel)
    try:
        NetworkRegularizer(build(0), group=other)()
    except ValueError as error:
        found["error"] = str(error)
    try:
        NetworkRegularizer(build(rank // 2))()
    except ValueError as error:
        found["two models"] = str(error)
    found["projections"] = one_projection_a_pair(rank, mine)
    for how in FEW:
        found[how] = fewer_layers(how, nn.parallel.DistributedDataParallel)
    found["unused"], found["joined"] = unused_layer(), joined(rank)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    run_processes(3, Path(__file__), folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(3)]


@pytest.mark.parametrize("how", ["given", "ddp"])
@pytest.mark.parametrize("ranks", [(0, 1), (2,)])
def test_each_group_has_the_value_and_gradient_of_its_own_model(found, how, ranks):
    value, gradients = penalty_and_gradients(build(ranks[0] // 2))
    for rank in ranks:
        torch.testing.assert_close(found[rank][how][0], value)
    for k, expected in enumerate(gradients):
        got = [found[rank][how][1][k] for rank in ranks]
        mean = sum(got) / len(got)
        torch.testing.assert_close(mean, expected)


def test_a_group_without_this_process_is_refused(found):
    assert all("expected a group that this process" in each["error"] for each in found)


def test_two_models_without_a_group_are_refused_on_all_processes(found):
    for each in found:
        assert "expected the same model on all processes" in each["two models"]
        assert "group=" in each["two models"]
        assert "share_work=False" in each["two models"]


def test_a_projection_without_a_seed_is_that_of_the_groups_first_process(found):
    (first, own), (second, other), (third, _) = (each["projections"] for each in found)
    assert torch.equal(first, second)
    assert third.shape[-1] == first.shape[-1] + 1
    assert not torch.equal(own, other)


def test_a_layer_that_only_the_penalty_uses_has_its_gradient_where_forward_returns_it(found):
    network = build(0)
    output = network[2](network[0](torch.ones(2, 6, dtype=torch.float64)))
    (output.square().mean() + NetworkRegularizer(network)()).backward()
    for each in found:
        for got, parameter in zip(each["unused"], network.parameters(), strict=True):
            zero = torch.zeros_like(parameter)
            got, expected = (zero if g is None else g for g in (got, parameter.grad))
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("how", FEW)
def test_processes_without_a_layer_of_their_own_have_value_and_gradient_of_the_whole(found, how):
    alone = fewer_layers(how, nn.Sequential)
    for each in found:
        torch.testing.assert_close(each[how], alone, rtol=1e-10, atol=1e-12)


def test_processes_that_run_out_of_data_leave_join_as_the_others_do(found):
    trained, *others = [each["joined"] for each in found]
    for other in others:
        torch.testing.assert_close(other, trained)
    pairs = zip(trained, build(0).parameters(), strict=True)
    assert all(not torch.equal(after, before) for after, before in pairs)


if __name__ == "__main__":
    main(sys.argv[1])
