"""What a few images ask for: augmentation and penalties, in the step that they take part in."""

import pytest
import torch
from mhe_gan.config import GANConfig


def weights_after(make_trainer, steps=2, **settings):
    trainer, batch = make_trainer(spectral_norm=False, regularizer="none", **settings)
    records = [trainer.step(step, batch) for step in range(steps)]
    networks = (trainer.generator, trainer.discriminator)
    return [[p.detach().clone() for p in n.parameters()] for n in networks], records, trainer


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("settings", "generator_too"),
    [
        ({"augment": "color"}, True),
        ({"augment": "cutout,translation"}, True),
        ({"r1": 10.0}, False),
        ({"lecam": 0.3}, False),
    ],
)
def test_a_flag_changes_the_networks_it_should(make_trainer, settings, generator_too):
    plain, records, _ = weights_after(make_trainer, steps=1)
    changed, others, _ = weights_after(make_trainer, steps=1, **settings)
    assert same(plain[0], changed[0]) != generator_too  # whose first step comes first
    # Adam's first step has a gradient's sign only.
    plain, changed = (weights_after(make_trainer, **s)[0] for s in ({}, settings))
    assert not same(plain[1], changed[1])
    added = {name for name in ("r1", "lecam") if name in settings}
    assert others[0].keys() - records[0].keys() == added


def test_r1_counts_every_so_many_steps(make_trainer):
    _, records, _ = weights_after(make_trainer, steps=5, r1=1.0, r1_every=2)
    assert [float(record["r1"]) > 0 for record in records] == [True, False, True, False, True]


def test_r1_makes_the_discriminator_flatter(make_trainer):
    def steepness(r1):
        _, records, _ = weights_after(make_trainer, steps=40, r1=r1, r1_every=1, lr=2e-3)
        return float(records[-1]["r1"])

    assert steepness(100.0) < 0.5 * steepness(1e-6)


def test_r1_takes_no_power_iteration(make_trainer):
    # one step is one forward pass in training mode, with or without it
    vectors = []
    for settings in ({}, {"r1": 1.0}):
        trainer, batch = make_trainer(regularizer="none", **settings)
        trainer.step(0, batch)
        vectors.append([b.clone() for n, b in trainer.discriminator.named_buffers() if "_u" in n])
    assert vectors[0]
    assert same(*vectors)


def test_lecams_averages_are_part_of_the_state(make_trainer, tmp_path):
    _, _, trainer = weights_after(make_trainer, lecam=0.1)
    assert trainer.lecam.state_dict()["started"]
    assert trainer.lecam.averages.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": "colour"}, "--augment of color, translation, cutout or none, got colour"),
        ({"r1": -1.0}, "--r1 at least 0"),
        ({"lecam": -1.0}, "--lecam at least 0"),
        ({"r1_every": 0}, "--r1-every at least 1"),
    ],
)
def test_settings_out_of_range_are_said(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        GANConfig(output=tmp_path, **settings)
