"""The collapse alarm: its figure, and that it goes off where it should and nowhere else."""

import itertools
import math

import mhe_gan.collapse
import mhe_gan.train
import pytest
import torch
import yaml
from mhe_core.training.checkpoint import load_checkpoint
from mhe_gan.collapse import LIMIT, TrainingCollapsed, collapse_figures, goes_off
from mhe_gan.config import GANConfig
from mhe_gan.train import train
from support.runs import records

# One run learns to draw digits; the other, of a learning rate fifteen times as high, does not.
LEARNS = {"width": 0.0625, "batch_size": 16, "lr": 2e-3, "ema": 0.9, "spectral_norm": False}
LEARNS |= {"steps": 200, "sample_every": 20, "stop_on_collapse": True, "device": "cpu", "seed": 1}
COLLAPSES = LEARNS | {"lr": 0.03, "steps": 1200, "sample_every": 100}
# The first steps of either, before any has learnt.
BEGINS = LEARNS | {"steps": 24, "sample_every": 2, "ema": 0.0, "log_every": 7}


def by_hand(features, centre):
    """The mean of exp(−2 ‖u − v‖²) over pairs, pair by pair."""
    rows = [x - centre for x in features.double()]
    units = [x / x.norm() for x in rows]
    values = [
        math.exp(-2 * float((u - v).square().sum())) for u, v in itertools.combinations(units, 2)
    ]
    return sum(values) / len(values)


def test_the_energies_are_those_of_all_pairs():
    torch.manual_seed(0)
    real, samples = torch.randn(12, 5) + 3, torch.randn(9, 5) * 0.3 + 4
    figures = collapse_figures(real, samples)
    centre = real.double().mean(0)
    of_real, of_samples = by_hand(real, centre), by_hand(samples, centre)
    assert figures["real_feature_energy"] == pytest.approx(of_real, rel=1e-5)
    assert figures["sample_feature_energy"] == pytest.approx(of_samples, rel=1e-5)
    assert figures["feature_energy_ratio"] == pytest.approx(of_samples / of_real, rel=1e-5)
    expected = (of_samples - of_real) / (1 - of_real)
    assert figures["collapse"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("M", [1, 2, 5, 50])
def test_a_generator_of_few_images_has_one_over_their_number(M):
    torch.manual_seed(M)
    real = torch.randn(1000, 64)
    samples = torch.randn(M, 64).repeat(2000 // M, 1)
    assert collapse_figures(real, samples)["collapse"] == pytest.approx(1 / M, abs=0.02)


def test_images_as_unlike_as_real_ones_have_none():
    torch.manual_seed(0)
    real, samples = torch.randn(2, 1000, 64) + 5
    assert abs(collapse_figures(real, samples)["collapse"]) < 0.01


def test_images_that_are_all_the_mean_are_finite():
    figures = collapse_figures(torch.ones(8, 4), torch.ones(8, 4))
    assert all(math.isfinite(value) for value in figures.values())


@pytest.mark.parametrize(
    ("collapses", "expected"),
    [
        ([], False),
        ([0.9] * 9, False),
        ([0.9] * 10, True),
        ([0.9] * 10 + [0.1, 0.9, 0.9], False),
        ([0.1, 0.9, 0.9], False),
        ([0.1, 0.6, 0.6, 0.6], True),
        ([0.1, 0.6, 0.6, 0.6, 0.1], False),
    ],
)
def test_when_it_goes_off(collapses, expected):
    steps = range(100, 100 * len(collapses) + 1, 100)
    assert goes_off(dict(zip(steps, collapses, strict=True))) is expected


@pytest.mark.parametrize("every", [1, 90, 400, 5000])
def test_how_long_a_run_may_take_to_begin_does_not_depend_on_the_interval(every):
    alarm = next(n for n in itertools.count(1) if goes_off({every * i: 0.9 for i in range(n + 1)}))
    assert alarm >= 2  # three evaluations
    assert alarm * every >= 1000
    assert alarm == 2 or (alarm - 1) * every < 1000


def collapses(run):
    return {one["step"]: one["collapse"] for one in records(run) if "collapse" in one}


@pytest.mark.slow
def test_a_run_that_learns_ends_with_samples_as_unlike_as_real_images(tmp_path):
    train(GANConfig(output=tmp_path, **LEARNS))
    found = collapses(tmp_path)
    assert list(found) == list(range(20, 201, 20))
    assert found[20] > 0.9  # an untrained generator's images are alike
    assert found[200] < 0.25
    assert (tmp_path / "summary.json").exists()


@pytest.mark.slow
def test_a_run_that_collapses_is_ended(tmp_path):
    with pytest.raises(TrainingCollapsed, match="the samples look alike"):
        train(GANConfig(output=tmp_path, **COLLAPSES))
    assert min(list(collapses(tmp_path).values())[-3:]) > LIMIT


def test_it_ends_the_run_in_order(tmp_path, command, monkeypatch):
    monkeypatch.setattr(mhe_gan.train, "COMPARED", 32)
    monkeypatch.setattr(mhe_gan.collapse, "TO_BEGIN", 20)
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(BEGINS))
    run = tmp_path / "run"
    arguments = ("train", "--config", file, "--output", run)
    line = command("mhe-gan", *arguments, status=2).stderr.splitlines()[-1]
    assert "look alike" in line
    assert "at 10 evaluations in a row" in line
    assert "at step 20," in line
    assert list(collapses(run)) == list(range(2, 21, 2))
    assert load_checkpoint(run / "checkpoints" / "last")["step"] == 20
    assert not (run / "summary.json").exists()
    again = command("mhe-gan", *arguments, "--resume", status=2).stderr.splitlines()[-1]
    assert "at step 22," in again  # no further than to the next evaluation


def test_a_generator_that_forgets_its_noise_has_collapsed(make_trainer):
    trainer, batch = make_trainer()
    trainer.step(0, batch)
    vectors = [b.clone() for b in trainer.discriminator.buffers()]
    with torch.no_grad():
        before = trainer.collapse(trainer.sampled)
        trainer.generator.project[0].weight.zero_()
        trainer.average.project[0].weight.zero_()
        after = trainer.collapse(trainer.sampled)
    assert before["collapse"] < 0.9
    assert after["collapse"] == pytest.approx(1, abs=1e-3)
    assert before["real_feature_energy"] == after["real_feature_energy"]
    assert trainer.discriminator.training
    for a, b in zip(vectors, trainer.discriminator.buffers(), strict=True):
        assert torch.equal(a, b)  # it has taken no power iteration


def test_looking_changes_no_step(tmp_path):
    settings = BEGINS | {"steps": 4, "spectral_norm": True, "ema": 0.9}
    for name, alarm in (("with", True), ("without", False)):
        train(GANConfig(output=tmp_path / name, **settings | {"stop_on_collapse": alarm}))
    a, b = (
        load_checkpoint(tmp_path / name / "checkpoints" / "last") for name in ("with", "without")
    )
    for part in ("generator", "discriminator", "average"):
        assert a["state"][part].keys() == b["state"][part].keys()
        assert all(torch.equal(x, b["state"][part][k]) for k, x in a["state"][part].items())


@pytest.mark.parametrize("model", ["dcgan", "resnet"])
def test_both_pairs_have_features_for_it(make_trainer, model):
    trainer, batch = make_trainer(model=model)
    images = batch[0].float() / 127.5 - 1
    trainer.discriminator.eval()
    features = trainer.discriminator.features(images)
    logits = trainer.discriminator.output(features).squeeze(1)
    torch.testing.assert_close(logits, trainer.discriminator(images))
    assert trainer.collapse(trainer.sampled)["collapse"] <= 1
