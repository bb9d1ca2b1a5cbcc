"""Networks that know classes: what each module computes, and that classes reach it."""

import json
from types import SimpleNamespace

import mhe_gan.sample
import numpy as np
import pytest
import torch
from mhe_core import NetworkRegularizer
from mhe_core.training.command import parse
from mhe_gan.conditional import ClassBatchNorm2d, Discriminator
from mhe_gan.config import GANConfig
from mhe_gan.networks import IMAGE_SIZES, NETWORKS, create_networks, singular_values
from mhe_gan.sample import (
    SampleConfig,
    apportioned,
    calibrate,
    draw_noise,
    generate,
    interpolated_noise,
    load_generator,
    sample,
)
from mhe_gan.sources import open_source
from mhe_gan.test import TestConfig, build_scorer
from mhe_gan.test import test as score_run
from mhe_gan.train import train
from PIL import Image
from support.images import noise_folder
from torch import nn

CLASSES = ("cat", "dog", "eel")


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_the_plain_one_of_each_class(training):
    torch.manual_seed(0)
    x, classes = torch.randn(12, 5, 3, 3) * 2 + 1, torch.arange(12) % 3
    norm = ClassBatchNorm2d(5, 3, eps=1e-3).train(training)
    nn.init.normal_(norm.scale)
    nn.init.normal_(norm.shift)
    norm.running_mean.normal_()
    norm.running_var.uniform_(1, 2)
    expected = torch.empty_like(x)
    for label in range(3):
        plain = nn.BatchNorm2d(5, eps=1e-3).train(training)
        plain.load_state_dict({
            "weight": norm.scale[label], "bias": norm.shift[label],
            "running_mean": norm.running_mean, "running_var": norm.running_var,
            "num_batches_tracked": torch.tensor(0),
        })  # fmt: skip
        expected[classes == label] = plain(x)[classes == label]
    torch.testing.assert_close(norm(x, classes), expected)


def test_an_untrained_conditional_batch_norm_is_a_plain_one():
    x = torch.randn(4, 5, 3, 3)
    norm = ClassBatchNorm2d(5, 3)
    torch.testing.assert_close(norm(x, torch.tensor([0, 1, 2, 0])), nn.BatchNorm2d(5)(x))


def test_a_discriminator_projects_features_on_the_class():
    class Sums(Discriminator):
        def __init__(self):
            super().__init__()
            self.features = nn.Flatten()
            self.output = nn.Linear(2, 1)
            self.projection = nn.Embedding(2, 2)

    network = Sums()
    with torch.no_grad():
        network.output.weight.copy_(torch.tensor([[1.0, 10.0]]))
        network.output.bias.fill_(0.5)
        network.projection.weight.copy_(torch.tensor([[100.0, 0.0], [0.0, 1000.0]]))
    images = torch.tensor([[2.0, 3.0], [2.0, 3.0]])
    # w·φ + b = 2 + 30 + 0.5, and v·φ = 200 or 3000
    assert network(images, torch.tensor([0, 1])).tolist() == [232.5, 3032.5]


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("size", IMAGE_SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_gradients(name, size, channels):
    torch.manual_seed(0)
    generator, discriminator = create_networks(
        name, width=0.0625, image_size=size, channels=channels, classes=CLASSES
    )
    classes = torch.tensor([0, 1, 2])
    images = generator(torch.randn(3, 128), classes)
    assert images.shape == (3, channels, size, size)
    logits = discriminator(images, classes)
    assert logits.shape == (3,)
    logits.sum().backward()
    assert all(p.grad is not None for p in [*generator.parameters(), *discriminator.parameters()])


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_class_changes_images_and_logits_once_it_is_learnt(name):
    torch.manual_seed(0)
    generator, discriminator = create_networks(name, width=0.0625, classes=CLASSES)
    for name, parameter in generator.eval().named_parameters():
        if name.endswith(("scale", "shift")):
            nn.init.normal_(parameter)  # as steps would
    noise = torch.randn(1, 128).repeat(3, 1)
    images = generator(noise, torch.tensor([0, 1, 1]))
    assert not torch.allclose(images[0], images[1])
    torch.testing.assert_close(images[1], images[2])
    logits = discriminator.eval()(images[:1].repeat(3, 1, 1, 1), torch.tensor([0, 1, 1]))
    assert not torch.allclose(logits[0], logits[1], rtol=1e-2)
    torch.testing.assert_close(logits[1], logits[2])


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_without_classes_there_is_nothing_of_them(name):
    plain, conditional = (
        create_networks(name, width=0.0625, classes=classes) for classes in ((), CLASSES)
    )
    assert plain[0].classes == ()
    assert conditional[0].classes == CLASSES
    generator, discriminator = (
        conditional[i].state_dict().keys() - plain[i].state_dict().keys() for i in (0, 1)
    )
    assert generator
    assert all(key.endswith((".scale", ".shift")) for key in generator)
    assert all(key.startswith("projection.") for key in discriminator)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_classes_are_asked_for_or_refused(name):
    conditional, plain = (
        create_networks(name, width=0.0625, classes=classes) for classes in (CLASSES, ())
    )
    inputs = torch.zeros(1, 128), torch.zeros(1, 3, 32, 32)
    for network, x in zip(conditional, inputs, strict=True):
        with pytest.raises(ValueError, match="expected the classes"):
            network(x)
    for network, x in zip(plain, inputs, strict=True):
        with pytest.raises(ValueError, match="expected no classes"):
            network(x, torch.tensor([0]))


def test_the_projection_is_spectral_normed():
    torch.manual_seed(0)
    _, discriminator = create_networks("resnet", width=0.0625, classes=CLASSES)
    for _ in range(30):
        discriminator(torch.randn(3, 3, 32, 32), torch.arange(3))
    assert float(singular_values(discriminator)["projection"]) == pytest.approx(1, abs=1e-3)


def test_the_energy_is_of_the_same_layers():
    plain, conditional = (
        create_networks("resnet", width=0.0625, spectral_normed=False, classes=classes)[1]
        for classes in ((), CLASSES)
    )
    layers = [
        list(NetworkRegularizer(network, output_layer="output").terms())
        for network in (plain, conditional)
    ]
    assert layers[0] == layers[1]


def two_colours(folder):
    """Two classes, of nearly black and nearly white images."""
    draw = np.random.default_rng(0)
    for name, brightness in (("black", 10), ("white", 245)):
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True)
            for i in range(24):
                pixels = draw.integers(brightness - 10, brightness + 10, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@pytest.mark.slow
def test_a_generator_learns_what_a_class_looks_like(tmp_path):
    data = two_colours(tmp_path / "data")
    settings = {"width": 0.0625, "batch_size": 16, "ema": 0.9, "lr": 1e-3, "beta1": 0.0}
    config = GANConfig(
        output=tmp_path / "run", data=str(data), model="resnet", conditional=True, loss="hinge",
        steps=500, device="cpu", **settings,
    )  # fmt: skip
    train(config)
    generator, _, _ = load_generator(config.output)
    noise = draw_noise(64, seed=1)
    black, white = (
        torch.cat(list(generate(generator, noise, classes=torch.full((64,), label)))).float()
        for label in (0, 1)
    )
    assert black.mean() < 90
    assert white.mean() > 165


@pytest.fixture(scope="module")
def conditional_run(tmp_path_factory):
    """A run on three classes whose steps are so long that each class soon looks different."""
    folder = tmp_path_factory.mktemp("conditional")
    config = GANConfig(
        output=folder / "run", data=str(noise_folder(folder / "data", size=32)), conditional=True,
        width=0.0625, batch_size=8, steps=4, lr=0.1, ema=0.0, device="cpu",
    )  # fmt: skip
    train(config)
    return config.output


def cells(file, columns):
    """The images of a grid, uint8 [N, 32, 32, 3]."""
    grid = np.asarray(Image.open(file))
    assert grid.shape[1] == columns * 34 + 2
    return np.stack(
        [
            grid[row : row + 32, column : column + 32]
            for row in range(2, grid.shape[0] - 2, 34)
            for column in range(2, grid.shape[1] - 2, 34)
        ]
    )


@pytest.mark.parametrize(
    ("flags", "columns", "classes"),
    [
        ((), 3, [0, 1, 2, 0, 1, 2]),
        (("--interpolate", "2"), 2, [0, 0, 1, 1, 2, 2]),
        (("--class", "b"), 2, [1] * 6),
        (("--class", "2", "--interpolate", "3"), 3, [2] * 6),
    ],
)
def test_which_classes_a_grid_shows(conditional_run, tmp_path, flags, columns, classes):
    file = tmp_path / "grid.png"
    config = parse(
        SampleConfig,
        [str(conditional_run), "--output", str(file), "--num", "6", *flags],
        "mhe-gan sample",
        positional=("run",),
    )
    sample(config)
    noise = draw_noise(6, 0)
    if config.interpolate:
        noise = interpolated_noise(6, config.interpolate, 0)
    generator, _, _ = load_generator(conditional_run)
    assert generator.classes == ("a", "b", "c")
    (expected,) = generate(generator, noise, classes=torch.tensor(classes))
    found = cells(file, columns)[:6]
    assert np.abs(found.transpose(0, 3, 1, 2).astype(int) - expected.numpy()).max() <= 1
    (other,) = generate(generator, noise, classes=(torch.tensor(classes) + 1) % 3)
    assert np.abs(other.numpy().astype(int) - expected.numpy()).max(axis=(1, 2, 3)).min() > 1


def test_an_unknown_class_is_named(conditional_run, trained, command):
    for run, message in (
        (conditional_run, "expected --class of a, b, c, or a number below 3, got '3'"),
        (trained, "expected --class of a run with --conditional, this one has no classes"),
    ):
        arguments = ("sample", run, "--output", "x.png", "--class", "3")
        assert message in command("mhe-gan", *arguments, status=2).stderr


def test_grey_images_are_written_and_scored_as_all_others(tmp_path):
    config = GANConfig(
        output=tmp_path / "run", channels=1, width=0.0625, batch_size=8, steps=1, device="cpu"
    )
    train(config)
    generator, _, _ = load_generator(config.output)
    (pixels,) = generate(generator, draw_noise(4, seed=0))
    assert pixels.shape == (4, 3, 32, 32)
    assert torch.equal(pixels[:, 0], pixels[:, 1])
    assert torch.equal(pixels[:, 0], pixels[:, 2])


def test_grey_samples_are_compared_with_grey_images(tmp_path, classifiers):
    data = noise_folder(tmp_path / "data", size=32)
    settings = {"width": 0.0625, "batch_size": 8, "steps": 1, "device": "cpu", "data": str(data)}
    found = {}
    for channels in (1, 3):
        config = GANConfig(output=tmp_path / str(channels), channels=channels, **settings)
        train(config)
        scored = {"num_samples": 20, "feature_extractor": classifiers[0], "device": "cpu"}
        test = TestConfig(run=config.output, **scored)
        scorer = build_scorer(config, torch.device("cpu"), test)
        files = sorted((data / "train").rglob("*.png"))
        images = [Image.open(file).convert("RGB") for file in files]
        if channels == 1:
            images = [image.convert("L").convert("RGB") for image in images]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        expected = scorer.extractor(pixels)[0]
        torch.testing.assert_close(scorer.reference, expected, rtol=0, atol=0.02)
        found[channels] = score_run(test)
    assert found[1]["reference"] == "24 train images, grey"
    assert found[3]["reference"] == "24 train images"


def test_statistics_are_of_all_classes():
    # more classes than update_bn's batches have images
    seen = []

    class Generator(nn.Module):
        classes = tuple(map(str, range(100)))

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(128)

        def forward(self, noise, classes):
            seen.append(classes)
            return self.norm(noise)

    calibrate(Generator())
    counts = torch.cat(seen).bincount(minlength=100)
    assert counts.sum() == 2048
    assert counts.min() >= 20


@pytest.mark.parametrize("num", [1, 7, 60, 1000])
@pytest.mark.parametrize("counts", [[10, 10, 10], [90, 9, 1], [5, 0, 3], [1, 1000, 333]])
def test_classes_are_as_frequent_as_in_training(counts, num):
    classes = apportioned(counts, num)
    assert torch.equal(classes, apportioned(counts, num))
    found = classes.bincount(minlength=3).numpy()
    exact = np.array(counts) * num / sum(counts)
    assert found.sum() == len(classes) == num
    assert np.abs(found - exact).max() < 1
    half = classes[: num // 2].bincount(minlength=3).numpy()  # and evenly spread
    assert np.abs(half - exact / 2).max() <= 1.5


def test_scores_are_of_classes_as_frequent_as_in_training(tmp_path, monkeypatch, classifiers):
    data = noise_folder(tmp_path / "data", size=32)
    files = sorted((data / "train").rglob("*.png"))
    left = {name: [file for file in files if file.parent.name == name] for name in "abc"}
    for name, kept in (("a", 1), ("b", 5)):
        for file in left[name][kept:]:
            file.unlink()
    counts = {"a": 1, "b": 5, "c": len(left["c"])}
    total = sum(counts.values())
    scored = {"score_every": 1, "num_samples": 10 * total, "feature_extractor": classifiers[0]}
    seen = []

    def watched(generator, noise, batch_size=500, classes=None):
        seen.append(classes)
        return generate(generator, noise, batch_size, classes)

    monkeypatch.setattr(mhe_gan.sample, "generate", watched)
    config = GANConfig(
        output=tmp_path / "run", data=str(data), conditional=True, width=0.0625, batch_size=4,
        steps=1, device="cpu", **scored,
    )  # fmt: skip
    train(config)
    expected = [10 * count for count in counts.values()]
    of_alarm, of_scores = seen  # grids are made elsewhere
    assert of_scores.bincount().tolist() == expected
    assert (
        np.abs(of_alarm.bincount().numpy() - 512 / total * np.array([*counts.values()])).max() < 1
    )
    del scored["score_every"]
    report = score_run(TestConfig(run=config.output, device="cpu", **scored))
    named = {name: 10 * count for name, count in counts.items()}
    assert report["samples_of_class"] == named
    assert json.loads((config.output / "test.json").read_text())["samples_of_class"] == named
    assert seen[-1].bincount().tolist() == expected
    list(open_source(str(config.output), num_images=10 * total).batches())
    assert seen[-1].bincount().tolist() == expected


def test_classes_of_one_kind_are_refused(tmp_path):
    data = noise_folder(tmp_path / "data", size=32)
    for split in ("train", "test"):
        for name in "bc":
            (data / split / name).rename(tmp_path / f"{split}-{name}")
    config = GANConfig(
        output=tmp_path / "run", data=str(data), conditional=True, batch_size=8, steps=1
    )
    with pytest.raises(ValueError, match="expected images of several classes, those of"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_generated_images_have_the_real_ones_classes(make_trainer):
    trainer, batch = make_trainer(conditional=True, n_dis=2, regularizer="none")
    given = SimpleNamespace(generator=[], discriminator=[])
    for name, kept in vars(given).items():
        network = getattr(trainer, name)
        network.register_forward_pre_hook(lambda _, inputs, kept=kept: kept.append(inputs[1]))
    trainer.step(0, batch)
    first, second = batch[1].tensor_split(2)
    for found, expected in (
        (given.generator, [first, first, second]),  # its own step, then two discriminator steps
        (given.discriminator, [first, first.repeat(2), second.repeat(2)]),
    ):
        assert [x.tolist() for x in found] == [x.tolist() for x in expected]
