"""insightface's backbones: names of weights, outputs and gradients of the published ones."""

import functools
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mhe_core.errors import UserError
from mhe_core.training.checkpoint import CheckpointError
from sphereface_plus.backbones import create_backbone
from sphereface_plus.config import FaceConfig
from sphereface_plus.embedding import FaceModel
from sphereface_plus.initial import start_from
from sphereface_plus.train import train

VECTORS = Path(__file__).parent / "vectors" / "backbones"
KEYS = json.loads((VECTORS / "state_dict_keys.json").read_text())
NAMES = {f"r{depth}": f"iresnet{depth}" for depth in (18, 34, 50, 100, 200)}
NAMES |= {"mbf": "mobilefacenet", "mbf_large": "mobilefacenet_large"}
SEED = 1000
SIZE = (112, 112)


@pytest.fixture(scope="module")
def recorded():
    return np.load(VECTORS / "backbones.npz")


@pytest.mark.parametrize("short", NAMES)
def test_weights_have_the_published_names_shapes_and_order(short):
    with torch.device("meta"):
        network = create_backbone(NAMES[short], 512, SIZE)
    found = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")]
        for key, value in network.state_dict().items()
    ]
    assert found == KEYS[short]


def made_weights(network):
    """Weights by the rule of the vectors' README."""
    made = {}
    for i, (key, value) in enumerate(network.state_dict().items()):
        draw, shape = np.random.RandomState(SEED + i), tuple(value.shape)
        if key.endswith("num_batches_tracked"):
            made[key] = torch.zeros((), dtype=torch.int64)
            continue
        if key.endswith("running_var"):
            array = 0.5 + draw.random_sample(shape)
        elif key.endswith(("running_mean", "bias")):
            array = 0.1 * draw.standard_normal(shape)
        elif len(shape) == 1:
            array = 0.2 + 0.6 * draw.random_sample(shape)
        else:
            array = draw.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
        made[key] = torch.from_numpy(array.astype(np.float32))
    return made


def made_images():
    draw = np.random.RandomState(SEED + 99999)
    noise = 2 * draw.random_sample((2, 3, 112, 112)) - 1
    blocks = 2 * draw.random_sample((2, 3, 7, 7)) - 1
    images = 0.3 * noise + 0.7 * blocks.repeat(16, axis=2).repeat(16, axis=3)
    return torch.from_numpy(images.astype(np.float32))


@functools.cache  # drawing takes longer than all else
def made(short, dim):
    network = create_backbone(NAMES[short], dim, SIZE)
    network.load_state_dict(made_weights(network))
    return network.double()


@pytest.mark.parametrize(
    ("short", "dim"),
    [
        ("r18", 512),
        ("mbf", 512),
        pytest.param("r18", 128, marks=pytest.mark.slow),
        pytest.param("r50", 512, marks=pytest.mark.slow),
    ],
)
def test_embeddings_are_the_published_ones(recorded, short, dim):
    images = made_images()
    np.testing.assert_array_equal(images[:, :, :3, :3], recorded["image_corner"])
    with torch.no_grad():
        found = made(short, dim).eval()(images.double()).numpy()
    expected = recorded[f"{short}_{dim}/embedding64"]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found[0] - found[1], expected[0] - expected[1], rtol=0, atol=1e-9)


def test_gradients_in_training_are_the_published_ones(recorded):
    network, images = made("r18", 512).train(), made_images().double().requires_grad_()
    y = network(images)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    found = {
        "train_embedding64": y.detach(),
        "train_dx_corner": images.grad[:, :, :6, :6],
        "train_dx_mean_abs": images.grad.abs().mean(),
        "train_d_conv1": network.conv1.weight.grad,
        "train_d_features_bias": network.features.bias.grad,
    }
    for name, value in found.items():
        # The batch norm of two embeddings all but cancels their gradient: some digits are lost.
        expected = recorded[f"r18_512/{name}"]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-7 * abs(expected).max())
    assert network.features.weight.grad is None


@pytest.mark.parametrize("name", ["iresnet18", "mobilefacenet"])
def test_other_sizes_of_images_and_half_precision(name):
    network = create_backbone(name, 16, (112, 96)).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = network(torch.zeros(2, 3, 112, 96))
    assert embeddings.shape == (2, 16)
    assert embeddings.dtype == torch.float32


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level(logging.INFO)


def model_of(tmp_path, name, dim=16, size=(32, 32)):
    config = FaceConfig(output=tmp_path, model=name, dim=dim)
    return config, FaceModel(config, 3, size)


@pytest.mark.parametrize("prefix", ["", "module.", "features.module."])
def test_published_weights_are_loaded_from_a_file(tmp_path, prefix, caplog):
    config, model = model_of(tmp_path, "mobilefacenet")
    weights = {
        prefix + key: torch.rand(value.shape) for key, value in model.backbone.state_dict().items()
    }
    torch.save({**weights, "fc.weight": torch.rand(9, 16)}, tmp_path / "backbone.pth")
    head = model.head.weight.clone()
    start_from(tmp_path / "backbone.pth", model, config.model, ["a", "b", "c"])
    for key, value in model.backbone.state_dict().items():
        torch.testing.assert_close(value, weights[prefix + key].to(value.dtype))
    assert torch.equal(model.head.weight, head)
    assert "left out: fc.weight" in caplog.text


def test_facenets_weights_are_loaded_but_for_their_classifier(tmp_path, caplog):
    config, model = model_of(tmp_path, "inception_resnet_v1", size=(112, 96))
    weights = {key: torch.rand(value.shape) for key, value in model.backbone.state_dict().items()}
    weights |= {"logits.weight": torch.rand(9, 512), "logits.bias": torch.rand(9)}
    torch.save(weights, tmp_path / "facenet.pt")
    own = model.backbone.logits.weight.clone()
    start_from(tmp_path / "facenet.pt", model, config.model, ["a", "b", "c"])
    assert torch.equal(model.backbone.logits.weight, own)
    assert torch.equal(model.backbone.conv2d_1a.conv.weight, weights["conv2d_1a.conv.weight"])
    assert "logits" in caplog.text


def test_weights_of_another_network_are_refused(tmp_path):
    config, model = model_of(tmp_path, "mobilefacenet")
    torch.save(create_backbone("mobilefacenet", 8, (32, 32)).state_dict(), tmp_path / "dim8.pth")
    torch.save(create_backbone("sfnet4", 8, (32, 32), 0.1).state_dict(), tmp_path / "sfnet.pth")
    (tmp_path / "no.pth").write_text("no weights")
    for file, message in {
        "dim8.pth": r"features\.layers\.2\.weight as \[16, 512\], got \[8, 512\]",
        "sfnet.pth": "expected the weights of mobilefacenet",
        "no.pth": r"no\.pth",
    }.items():
        with pytest.raises(UserError, match=message):
            start_from(tmp_path / file, model, config.model, ["a", "b", "c"])
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        start_from(tmp_path / "gone.pth", model, config.model, ["a", "b", "c"])


def test_a_run_is_fine_tuned_with_another_head(tmp_path, caplog):
    settings = {"model": "sfnet4_bn", "width": 0.1, "dim": 8, "batch_size": 32, "steps": 1}
    train(FaceConfig(output=tmp_path / "first", **settings))
    first = {**settings, "init": tmp_path / "first", "lr": 0.0}
    train(FaceConfig(output=tmp_path / "second", head="adaface", **first))
    assert "another head" in caplog.text
    with pytest.raises(CheckpointError, match="do not fit"):
        train(FaceConfig(output=tmp_path / "third", **{**first, "dim": 16}))
