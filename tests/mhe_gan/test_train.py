import copy
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import mhe_gan.train
import numpy as np
import pytest
import torch
from mhe_core.errors import UserError
from mhe_core.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from mhe_core.training.images import DataError
from mhe_core.training.loop import TrainingDiverged, TrainingInterrupted
from mhe_core.training.run import read_config
from mhe_core.training.seeding import seed_all
from mhe_gan.config import GANConfig
from mhe_gan.losses import LOSSES, Loss, discriminator_loss, generator_loss
from mhe_gan.train import train
from PIL import Image
from support.forks import run_processes
from support.kills import kill_again_and_again
from support.runs import assert_same_run, records
from torch import nn


def steps_of(run, name="last"):
    return load_checkpoint(run / "checkpoints" / name)["step"]


def test_one_step_is_what_it_says(make_trainer):
    """The step against one written out with the networks and torch's optimizers alone."""
    trainer, (pixels, labels) = make_trainer(spectral_norm=False, regularizer="none", ema=0.9)
    g, d = copy.deepcopy(trainer.generator), copy.deepcopy(trainer.discriminator)
    optimizers = [torch.optim.Adam(n.parameters(), lr=1e-4, betas=(0.5, 0.999)) for n in (g, d)]
    average = [p.clone() for p in g.parameters()]
    for step in range(3):
        seed_all(0, step)
        metrics = trainer.step(step, (pixels, labels))

        seed_all(0, step)
        loss_g = generator_loss(d(g(torch.randn(8, 128))))
        optimizers[0].zero_grad()
        loss_g.backward()
        optimizers[0].step()
        fake = g(torch.randn(8, 128)).detach()
        loss_d = discriminator_loss(d(pixels / 127.5 - 1), d(fake))
        optimizers[1].zero_grad()
        loss_d.backward()
        optimizers[1].step()
        assert metrics["generator_loss"].item() == pytest.approx(loss_g.item(), rel=1e-5)
        assert metrics["discriminator_loss"].item() == pytest.approx(loss_d.item(), rel=1e-5)
        decay = min(0.9, (1 + step) / (10 + step))
        average = [
            decay * a + (1 - decay) * p for a, p in zip(average, g.parameters(), strict=True)
        ]
    for ours, theirs in ((trainer.generator, g), (trainer.discriminator, d)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert (a - b).abs().mean() < 1e-5  # Adam has moved them by about 3e-4
    for a, b in zip(trainer.average.parameters(), average, strict=True):
        assert (a - b).abs().mean() < 1e-5
    for a, b in zip(trainer.average.buffers(), trainer.generator.buffers(), strict=True):
        assert torch.equal(a, b)


def test_the_average_leaves_spectral_norms_vectors_as_they_are():
    torch.manual_seed(0)
    network = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5))
    average = copy.deepcopy(network)
    for step in range(5):
        network(torch.randn(2, 6))
        mhe_gan.train.update_average(average, network, 0.9, step)
    for mean, buffer in zip(average.buffers(), network.buffers(), strict=True):
        assert torch.equal(mean, buffer)  # unit vectors: their mean would not be one


def test_discriminator_steps_per_generator_step(make_trainer):
    trainer, batch = make_trainer(n_dis=3)
    trainer.step(0, batch)
    assert trainer.discriminator_optimizer.state_dict()["state"][0]["step"] == 3
    assert trainer.generator_optimizer.state_dict()["state"][0]["step"] == 1
    config = GANConfig(output="x", n_dis=2, epochs=4, batch_size=8)
    assert config.total_steps(80) == 20  # of which each takes 16 of the 4 · 80 images


@pytest.mark.parametrize("settings", [{"loss": "hinge"}, {"amp": "bf16"}, {"ema": 0}])
def test_variants_train(make_trainer, settings):
    trainer, batch = make_trainer(**settings)
    before = [p.clone() for p in trainer.generator.parameters()]
    metrics = trainer.step(0, batch)
    assert all(math.isfinite(float(value)) for value in metrics.values())
    assert all(
        not torch.equal(a, b) for a, b in zip(before, trainer.generator.parameters(), strict=True)
    )


def test_a_run_directory(trained):
    found = records(trained)
    assert [record["step"] for record in found] == [5, 10, 15, 20, 24]
    layers = [f"singular_value.features.{i}" for i in range(0, 14, 2)]
    figures = {"loss", "generator_loss", "discriminator_loss", "penalty", "discriminator_energy"}
    assert figures | {*layers, "singular_value.output"} <= set(found[0])
    assert found[0]["penalty"] != 0
    grids = sorted(path.name for path in (trained / "samples").iterdir())
    assert grids == ["step000008.png", "step000016.png", "step000024.png"]
    with Image.open(trained / "samples" / grids[-1]) as grid:
        assert grid.size == (274, 274)  # eight times 32 pixels, with two around each
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["steps"] == 24
    assert summary["seed"] == 0
    assert "mhe-gan" in summary


def test_killed_and_resumed_it_ends_the_same(tmp_path, trained):
    changes = {"output": tmp_path, "resume": True, "checkpoint_every": 1}
    config = GANConfig(**{**read_config(trained), **changes})
    kill_again_and_again(train, config)
    assert_same_run(tmp_path, trained)
    for grid in (trained / "samples").iterdir():
        assert (tmp_path / "samples" / grid.name).read_bytes() == grid.read_bytes()


def test_another_model_is_not_resumed(trained, command):
    arguments = ("train", "--output", trained, "--resume", "--no-spectral-norm")
    assert "was started with other settings" in command("mhe-gan", *arguments, status=2).stderr


PROCESSES = """
import sys, torch
from accelerate.utils import gather_object
from mhe_core.training.processes import make_accelerator
from mhe_core.training.run import Run
from mhe_gan.config import GANConfig
from mhe_gan.data import load_split
from mhe_gan.train import Trainer

config = GANConfig(
    output=sys.argv[1], width=0.0625, batch_size=16, n_dis=2, steps=4, log_every=2, device="cpu"
)
accelerator = make_accelerator(config.device, config.amp)
assert accelerator.num_processes == 2
run = Run(config, main=accelerator.is_main_process)
accelerator.wait_for_everyone()
trainer = Trainer(config, load_split(config, "train"), accelerator)
record = trainer.loop(run)()
for network in (trainer.generator, trainer.discriminator, trainer.average):
    mine = torch.cat([p.detach().flatten() for p in network.parameters()])
    first, second = gather_object([mine])
    assert torch.equal(first, second)
noises = gather_object([trainer._noise(2)])
assert not torch.equal(*noises)  # each process draws its own
if accelerator.is_main_process:
    run.finish(record, accelerator.device)
"""


def test_two_processes_keep_the_same_weights(tmp_path):
    (tmp_path / "program.py").write_text(PROCESSES)
    run_processes(2, tmp_path / "program.py", tmp_path / "run")
    assert [record["step"] for record in records(tmp_path / "run")] == [2, 4]
    assert (tmp_path / "run" / "samples" / "step000004.png").exists()


def config_of(path, **settings):
    tiny = {"width": 0.0625, "batch_size": 16, "device": "cpu", "log_every": 100}
    return GANConfig(output=path, **{**tiny, **settings})


def test_a_loss_that_is_not_finite_stops_it_and_keeps_the_last_good_state(tmp_path, monkeypatch):
    published = LOSSES["non_saturating"]

    def breaks_at_seven(real, fake, calls=[]):  # noqa: B006
        calls.append(1)
        return published.discriminator(real, fake) * (math.nan if len(calls) > 6 else 1)

    monkeypatch.setitem(LOSSES, "non_saturating", Loss(breaks_at_seven, published.generator))
    with pytest.raises(TrainingDiverged, match="not finite at step 10"):
        train(config_of(tmp_path, steps=20, checkpoint_every=5))
    assert steps_of(tmp_path) == 5
    assert not (tmp_path / "summary.json").exists()


def test_a_discriminator_without_mistakes_stops_it(tmp_path, monkeypatch):
    without_mistake(monkeypatch, 13)
    with pytest.raises(TrainingDiverged, match=r"below 0\.001 for 8 steps up to step 20"):
        train(config_of(tmp_path, steps=40, checkpoint_every=5))
    assert steps_of(tmp_path) == 15
    assert steps_of(tmp_path, "previous") == 10  # before the first such step


def without_mistake(monkeypatch, first, stops=()):
    """Losses that are 0 from a call on; a call that stops is interrupted."""
    published = LOSSES["non_saturating"]
    calls = []

    def discriminator(real, fake):
        calls.append(1)
        if len(calls) in stops:
            raise KeyboardInterrupt
        return published.discriminator(real, fake) * (0 if len(calls) >= first else 1)

    monkeypatch.setitem(LOSSES, "non_saturating", replace(published, discriminator=discriminator))


def test_a_resumed_run_still_knows_of_the_steps_without_mistake(tmp_path, monkeypatch):
    without_mistake(monkeypatch, 13, stops=[18])
    settings = {"steps": 40, "checkpoint_every": 5}
    with pytest.raises(TrainingInterrupted):
        train(config_of(tmp_path, **settings))
    assert steps_of(tmp_path) == 15
    with pytest.raises(TrainingDiverged, match=r"below 0\.001 for 8 steps up to step 20"):
        train(config_of(tmp_path, **settings, resume=True))


def test_a_checkpoint_from_before_they_were_counted_is_continued(tmp_path):
    run = tmp_path / "run"
    train(config_of(run, steps=4))
    content = load_checkpoint(run / "checkpoints/last")
    del content["state"]["without_mistake"]
    save_checkpoint(run / "checkpoints/last", content)
    assert train(config_of(run, steps=8, resume=True))["steps"] == 8
    del content["state"]["generator"]
    save_checkpoint(run / "checkpoints/last", content)
    with pytest.raises(CheckpointError, match="does not hold generator"):
        train(config_of(run, steps=12, resume=True))


def test_images_of_another_size(tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / "images" / split / "a"
        folder.mkdir(parents=True)
        for i in range(20):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    config = config_of(tmp_path / "run", data=str(tmp_path / "images"), steps=2)
    with pytest.raises(DataError, match="give --image-size"):
        train(config)
    config = config_of(tmp_path / "run", data=str(tmp_path / "images"), steps=2, image_size=48)
    train(config)
    with Image.open(tmp_path / "run" / "samples" / "step000002.png") as grid:
        assert grid.size == (8 * 50 + 2, 8 * 50 + 2)


@pytest.mark.parametrize(
    ("batch_size", "n_dis", "processes"), [(1, 1, 1), (1, 3, 1), (3, 1, 2), (3, 2, 2)]
)
def test_one_image_a_batch_is_too_few_for_batch_norm(tmp_path, batch_size, n_dis, processes):
    def load(config):
        raise AssertionError("images are read for nothing")

    config = config_of(tmp_path, batch_size=batch_size, n_dis=n_dis, steps=1)
    accelerator = SimpleNamespace(num_processes=processes, is_main_process=True)
    expected = rf"--batch-size at least {2 * processes} for .* dcgan.* got {batch_size}"
    with pytest.raises(UserError, match=expected):
        mhe_gan.train.prepare(config, accelerator, load=load)


def test_one_image_is_enough_where_it_has_several_values_a_channel(tmp_path):
    train(config_of(tmp_path, batch_size=1, steps=1, model="resnet"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_dis": 0}, "--n-dis at least 1"),
        ({"score_every": 0}, "--score-every at least 1"),
        ({"ema": 1.0}, "--ema at least 0 and below 1"),
        ({"generator_weight": -1}, "--generator-weight at least 0"),
        ({"num_samples": 3}, "--num-samples at least 10"),
        ({"steps": 5, "epochs": 2}, "--steps or --epochs"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        GANConfig(output="x", **settings)


def test_the_published_length_is_the_default():
    assert GANConfig(output="x").total_steps(1000) == 200_000
    assert GANConfig(output="x", epochs=2).total_steps(640) == 20


def test_grids_of_samples_are_in_tensorboards_log(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = {"width": 0.0625, "batch_size": 4, "steps": 2, "sample_every": 1, "device": "cpu"}
    train(GANConfig(output=tmp_path, tracker="tensorboard", **settings))
    log = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [grid.step for grid in log.Images("samples")] == [1, 2]
