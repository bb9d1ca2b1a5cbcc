"""Networks whose weights are spread over processes, against the same network in one.

Run in several processes, this file is the program whose processes save what they found.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
import torch
from mhe_core import NetworkRegularizer, hyperspherical_energy, sharded_hyperspherical_energy
from support.forks import run_processes
from support.versions import FIRST_TORCH, fsdp2
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.utils import parametrizations, parametrize, prune

COMHE = {"projection_dim": 3, "seed": 0}
CASES = {
    "mhe": {"hidden": "mhe"},
    "half_mhe": {"hidden": "half_mhe"},
    "comhe_random": {"hidden": "comhe_random", "hidden_options": COMHE},
    "not shared": {"hidden": "half_mhe", "share_work": False},
}
# Of layers whose weight is computed: without lengths and with them.
COMPUTED_CASES = {
    "directions": {"hidden": "half_mhe"},
    "lengths": {"hidden": "half_mhe", "hidden_options": {"convention": "released_code"}},
}
HOW = ("tensor parallel", *([] if FIRST_TORCH else ["FSDP2"]))


def build() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)]
    return nn.Sequential(*layers)


class Standardized(nn.Linear):
    """A weight that only forward knows."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.linspace(1, 2, sizes[1]).unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.gain * (self.weight - self.weight.mean(1, keepdim=True))
        return nn.functional.linear(x, weight, self.bias)


class LowRankUpdate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.a = nn.Parameter(torch.randn(12, 2)), nn.Parameter(torch.randn(2, 6))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


# The first layer, by what computes its weight; small, so that lengths count.
COMPUTED = {
    "weight norm": parametrizations.weight_norm,
    "weight norm by input": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "spectral norm": parametrizations.spectral_norm,
    "both": lambda layer: parametrizations.spectral_norm(parametrizations.weight_norm(layer)),
    "orthogonal": parametrizations.orthogonal,
    "low-rank update": lambda layer: parametrize.register_parametrization(
        layer, "weight", LowRankUpdate()
    ),
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.3),
    "standardized": lambda _: Standardized(6, 12),
    "standardized weight norm": lambda _: parametrizations.weight_norm(Standardized(6, 12)),
    "LoRA": lambda layer: with_lora(layer),
    "DoRA": lambda layer: with_lora(layer, use_dora=True),
}


def with_lora(layer: nn.Module, **options: bool) -> nn.Module:
    """The layer with an adapter that changes something."""
    import peft

    holder = nn.ModuleDict({"layer": layer})
    config = peft.LoraConfig(target_modules=["layer"], r=2, **options)
    adapted = peft.get_peft_model(holder, config).base_model.model["layer"]
    with torch.no_grad():
        adapted.lora_B["default"].weight.normal_()
    return adapted


def computed(kind: str) -> nn.Sequential:
    model = build()
    with torch.no_grad():
        model[0].weight.mul_(0.1)
    model[0] = COMPUTED[kind](model[0])
    return model


def sharded_computed(kind: str) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = computed(kind)
    fully_shard(model[0])
    return fully_shard(model)


def sharded(how: str) -> nn.Module:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model = build()
    if how == "FSDP2":
        fully_shard(model[0])
        return fully_shard(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))  # the head stays as it is
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def steps(model: nn.Module, case: str) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Values of the penalty and the weights' last gradients, of three steps of training."""
    regularizer = NetworkRegularizer(model, **(CASES | COMPUTED_CASES)[case])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values = []
    for _ in range(3):
        optimizer.zero_grad()
        regularizer.update(0.1)
        penalty = regularizer()
        (model(torch.ones(2, 6).cumsum(1)).square().mean() + penalty).backward()
        optimizer.step()
        values.append(penalty.detach())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return values, {
        n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in gradients.items()
    }


def energies_of_a_dtensor() -> dict[str, object]:
    """What the functions say of a DTensor, and what they are to be called with."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = distribute_tensor(build()[0].weight.detach(), mesh, [Shard(0)]).requires_grad_()
    found: dict[str, object] = {}
    for function in (hyperspherical_energy, sharded_hyperspherical_energy):
        try:
            function(rows)
        except TypeError as error:
            found[function.__name__] = str(error)
    found["ring"] = sharded_hyperspherical_energy(rows.to_local(), half_space=True)
    found["ring"].backward()
    found["ring gradient"] = rows.grad.full_tensor()
    found["ring"] = found["ring"].detach()
    return found


def has_peft() -> bool:
    return importlib.util.find_spec("peft") is not None


def main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {(how, case): steps(sharded(how), case) for how in HOW for case in CASES}
    if not FIRST_TORCH:
        kinds = [k for k in COMPUTED if has_peft() or "oRA" not in k]
        for kind, case in itertools.product(kinds, COMPUTED_CASES):
            found[kind, case] = steps(sharded_computed(kind), case)
    torch.save(found | energies_of_a_dtensor(), Path(folder) / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    run_processes(2, Path(__file__), folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", HOW)
def test_training_has_the_values_and_gradients_of_one_process(found, how, case):
    values, gradients = steps(build(), case)
    for got in (each[how, case] for each in found):
        torch.testing.assert_close(got[0], values, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got[1], gradients, rtol=1e-5, atol=1e-6)


@fsdp2
@pytest.mark.parametrize("case", COMPUTED_CASES)
@pytest.mark.parametrize("kind", COMPUTED)
def test_weights_that_are_computed_from_shards_are_those_of_one_process(found, kind, case):
    if "oRA" in kind:
        pytest.importorskip("peft")
    values, gradients = steps(computed(kind), case)
    for got in (each[kind, case] for each in found):
        torch.testing.assert_close(got[0], values, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got[1], gradients, rtol=1e-5, atol=1e-6)


def test_a_dtensor_is_refused_with_what_to_call(found):
    for each in found:
        said = each["hyperspherical_energy"]
        assert "got a DTensor" in said
        assert "sharded_hyperspherical_energy(neurons.to_local())" in said
        assert "neurons.full_tensor()" in said
        assert "to_local()" in each["sharded_hyperspherical_energy"]


def test_rows_that_are_sharded_go_round_without_being_gathered(found):
    weight = build()[0].weight.detach().requires_grad_()
    energy = hyperspherical_energy(weight, half_space=True)
    energy.backward()
    for each in found:
        torch.testing.assert_close(each["ring"], energy.detach())
        torch.testing.assert_close(each["ring gradient"], weight.grad)


def test_flattened_parameters_are_refused():
    class FullyShardedDataParallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._fsdp_wrapped_module = build()

    with pytest.raises(ValueError, match=r"fully_shard.*FullyShardedDataParallel"):
        NetworkRegularizer(nn.Sequential(FullyShardedDataParallel()))


if __name__ == "__main__":
    main(sys.argv[1])
