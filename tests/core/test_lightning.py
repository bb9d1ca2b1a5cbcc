"""EnergyCallback in Lightning's own loop: the steps of a loop that is written by hand.

The file is also the program of two processes, see ``found``.
"""

from __future__ import annotations

import csv
import logging
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch
from mhe_core import NetworkRegularizer
from mhe_core.errors import UserError
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

lightning = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.loggers import CSVLogger  # noqa: E402
from mhe_core.integrations.lightning import EnergyCallback  # noqa: E402
from support.forks import run_processes  # noqa: E402
from support.versions import FIRST_TORCH, fsdp2  # noqa: E402

for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")

OPTIONS = {"hidden_weight": lambda step: 0.1 * (step + 1), "output_weight": 0.5}


class Module(lightning.LightningModule):
    """Nine weights a neuron, two layers, SGD."""

    def __init__(self, *, by_hand: bool = False, as_dict: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.automatic_optimization, self.as_dict = not by_hand, as_dict

    def training_step(self, batch):
        x, y = batch
        loss = nn.functional.cross_entropy(self.model(x), y)
        return {"loss": loss, "other": x} if self.as_dict else loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Sharded(Module):
    """FSDP2, as Lightning's documentation shows it."""

    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        if not hasattr(self, "is_sharded"):
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.model[0], mesh=mesh)
            fully_shard(self.model, mesh=mesh)
            self.is_sharded = True


def data(batch_size: int = 8, **sampler: int) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(32, 6, generator=generator), torch.arange(32) % 4
    images = TensorDataset(x, y)
    part = DistributedSampler(images, shuffle=False, **sampler) if sampler else None
    return DataLoader(images, batch_size, sampler=part)


def fit(folder, *callbacks, module=None, loader=None, resume=None, **options):
    module = Module() if module is None else module
    options = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False} | options
    trainer = lightning.Trainer(
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(module, data() if loader is None else loader, ckpt_path=resume)
    return trainer, module


def by_hand(*, epochs=1, precision=None, names=(), **options):
    """The same as a loop; its weights, and the penalty of each step."""
    module, penalties = Module(), []
    regularizer = NetworkRegularizer(module.model, *names, **options)
    optimizer = module.configure_optimizers()
    for _ in range(epochs):
        for batch in data():
            regularizer.update(0.1)
            with torch.autocast("cpu", enabled=precision is not None):
                loss = module.training_step(batch)
            penalty = regularizer()
            optimizer.zero_grad()
            (loss + penalty).backward()
            optimizer.step()
            penalties.append(penalty.item())
    return list(module.parameters()), penalties


def check(module, want, **tolerances):
    for got, wanted in zip(module.parameters(), want, strict=True):
        torch.testing.assert_close(got, wanted, **tolerances)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        pytest.param({}, {}, id="plain"),
        pytest.param({"loader": data(4)}, {"accumulate_grad_batches": 2}, id="accumulated"),
        pytest.param({"module": "dict"}, {}, id="a dict"),
        pytest.param({}, {"precision": "bf16-mixed"}, id="bfloat16"),
    ],
)
def test_the_steps_are_those_of_a_loop_by_hand(settings, options, tmp_path):
    if "module" in settings:
        settings["module"] = Module(as_dict=True)
    callback = EnergyCallback(part="model", **OPTIONS)
    _, module = fit(tmp_path, callback, **settings, **options)
    want, penalties = by_hand(precision=options.get("precision"), **OPTIONS)
    check(module, want)
    assert len(penalties) == 4
    assert callback.regularizer.step == 3
    assert "training_step" not in vars(module)
    assert not torch.allclose(next(module.parameters()), by_hand()[0][0])  # it makes a difference


def test_penalty_and_layers_are_in_lightnings_log(tmp_path):
    logger = CSVLogger(tmp_path, "", "")
    callback = EnergyCallback(part="model", log="layers", **OPTIONS)
    fit(tmp_path, callback, logger=logger, log_every_n_steps=1)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    _, penalties = by_hand(**OPTIONS)
    assert [float(row["penalty"]) for row in rows] == pytest.approx(penalties, rel=1e-5)
    for row in rows:
        assert float(row["penalty/0"]) + float(row["penalty/2"]) == pytest.approx(
            float(row["penalty"]), rel=1e-5
        )


def test_a_resumed_fit_goes_on_with_the_projections_and_the_step(tmp_path):
    names = ("comhe_random", "comhe_random")
    drawn = {"projection_dim": 3, "num_projections": 2, "redraw_interval": 1000}
    options = {**OPTIONS, "hidden_options": drawn, "output_options": drawn}

    def callback():
        return EnergyCallback(*names, part="model", **options)

    torch.manual_seed(3)
    _, whole = fit(tmp_path, callback(), max_epochs=2)
    torch.manual_seed(3)
    trainer, _ = fit(tmp_path, callback())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(9)
    _, resumed = fit(tmp_path, callback(), max_epochs=2, resume=tmp_path / "half.ckpt")
    check(resumed, whole.parameters())


def test_what_it_cannot_do_is_said(tmp_path):
    with pytest.raises(UserError, match="where you call backward yourself"):
        fit(tmp_path, EnergyCallback(), module=Module(by_hand=True))
    with pytest.raises(UserError, match="log as 'nothing', 'penalty' or 'layers', got 'all'"):
        EnergyCallback(log="all")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes found, for which this file is the program."""
    folder = tmp_path_factory.mktemp("processes")
    run_processes(2, __file__, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp2", marks=fsdp2)])
def test_two_processes_take_the_steps_of_one(kind, found):
    want, _ = by_hand(**OPTIONS)
    for weights in (each[kind] for each in found):
        for got, wanted in zip(weights, want, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def main(folder: Path) -> None:
    """Each process takes half of each batch."""
    from lightning.pytorch.strategies import ModelParallelStrategy

    result = {}
    for kind, module, strategy in (
        ("ddp", Module(), "ddp"),
        ("fsdp2", Sharded(), ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)),
    ):
        if kind == "fsdp2" and FIRST_TORCH:
            continue
        callback = EnergyCallback(part="model", **OPTIONS)
        loader = data(4, num_replicas=2, rank=int(os.environ["RANK"]))
        _, module = fit(
            folder, callback, module=module, loader=loader, devices=2, strategy=strategy
        )
        result[kind] = [
            (p.full_tensor() if hasattr(p, "full_tensor") else p).detach()
            for p in module.parameters()
        ]
    torch.save(result, folder / f"{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
