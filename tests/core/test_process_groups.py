"""Groups of processes that each train a model of their own.

Run by torchrun, this file is the program whose processes save what they found.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from mhe_core import NetworkRegularizer
from torch import distributed as dist
from torch import nn


def build(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 700)).double()


def penalty_and_gradients(model: nn.Module, **options: object) -> tuple:
    penalty = NetworkRegularizer(model, **options)()
    penalty.backward()
    return penalty.detach(), [p.grad for p in model.parameters() if p.ndim == 2]


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
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(torchrun, tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    torchrun(3, Path(__file__), folder)
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


if __name__ == "__main__":
    main(sys.argv[1])
