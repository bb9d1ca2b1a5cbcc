"""Two processes against one: the same batches, the same weights, whole or sharded class vectors."""

import sys

import pytest
import torch
from mhe_core import create_regularizer, hyperspherical_energy, register_regularizer
from mhe_core.energy import Gaussian
from mhe_core.training.checkpoint import load_checkpoint
from sphereface_plus.config import FaceConfig
from sphereface_plus.penalty import energy_of_rows
from sphereface_plus.train import train
from support.forks import run_processes
from support.runs import records
from torch import nn

SETTINGS = {"model": "sfnet4", "width": 0.1, "dim": 8, "lr": 0.05, "batch_size": 32, "steps": 9}
SETTINGS |= {"checkpoint_every": 3, "eval_every": 3, "log_every": 3, "device": "cpu"}
SETTINGS |= {"annealing": {"gamma": 1.0}, "regularizer": "mhe", "mhe_weight": 3.0}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A start, and a run from there in one process."""
    folder = tmp_path_factory.mktemp("one")
    train(FaceConfig(output=folder / "start", **{**SETTINGS, "steps": 2}))
    train(FaceConfig(output=folder / "run", init=folder / "start", **SETTINGS))
    return folder


def flags(settings):
    flat = {**settings, "annealing.gamma": settings["annealing"]["gamma"]}
    return [f"--{k.replace('_', '-')}={v}" for k, v in flat.items() if k != "annealing"]


def assert_alike(run, expected_run):
    found, expected = (load_checkpoint(r / "checkpoints" / "last") for r in (run, expected_run))
    assert found["step"] == expected["step"] == 9
    for part in ("model", "optimizer"):
        torch.testing.assert_close(
            found["state"][part], expected["state"][part], rtol=1e-3, atol=2e-5
        )
    losses = [[record["loss"] for record in records(r)] for r in (run, expected_run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_train_as_one_does(one, tmp_path, sharded):
    run = tmp_path / "two"
    command = ["-m", "sphereface_plus.train", *flags(SETTINGS), "--init", one / "start"]
    command += ["--output", run, *(["--shard-classes"] if sharded else [])]
    run_processes(2, *command)
    assert_alike(run, one / "run")
    if not sharded:
        return
    # Back to the checkpoint of step 6, in a folder that looks interrupted, and on from there.
    (run / "checkpoints" / "last").unlink()
    (run / "checkpoints" / "best").unlink()
    (run / "checkpoints" / "previous").rename(run / "checkpoints" / "last")
    (run / "summary.json").unlink()
    assert load_checkpoint(run / "checkpoints" / "last")["step"] == 6
    run_processes(2, *command, "--resume")
    assert_alike(run, one / "run")


def test_sharding_needs_processes_and_classes_for_each(tmp_path):
    with pytest.raises(ValueError, match="several processes"):
        train(FaceConfig(output=tmp_path, shard_classes=True, **SETTINGS))


def test_sharded_class_vectors_are_not_clipped(tmp_path):
    with pytest.raises(ValueError, match="goes without --clip-grad"):
        FaceConfig(output=tmp_path, shard_classes=True, clip_grad=1.0)


@pytest.mark.parametrize(("name", "anchors"), [("comhe_random", "all"), ("mhe", "batch")])
def test_sharded_class_vectors_take_no_regularizer_that_needs_them_all(tmp_path, name, anchors):
    settings = FaceConfig(output=tmp_path, regularizer=name, anchors=anchors, shard_classes=True)
    with pytest.raises(ValueError, match=f"--shard-classes goes with.* got {name} and {anchors}"):
        energy_of_rows(name, settings, 30, 50)


class Uniform(nn.Module):
    """A third party's."""

    potential = Gaussian(2.0)

    def __init__(self, num_neurons, dim):
        super().__init__()

    def forward(self, neurons):
        return hyperspherical_energy(neurons, potential=self.potential)


@pytest.mark.parametrize("name", ["mhe", "half_mhe", "uniform"])
def test_sharded_class_vectors_have_the_energy_of_the_regularizer(tmp_path, monkeypatch, name):
    registry = sys.modules[register_regularizer.__module__]
    monkeypatch.setattr(registry, "_registered", {})
    register_regularizer("uniform", Uniform)
    settings = FaceConfig(output=tmp_path, regularizer=name, shard_classes=True)
    energy = energy_of_rows(name, settings, 30, 8)
    vectors = torch.randn(30, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(energy(vectors), create_regularizer(name, 30, 8)(vectors))
