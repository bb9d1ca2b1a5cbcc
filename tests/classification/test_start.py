"""What a run starts with, and the options that reach timm."""

import logging

import pytest
import timm
import torch
from mhe_classification.classifier import load
from mhe_classification.config import ClassificationConfig
from mhe_classification.data import load_splits
from mhe_classification.initial import new_model
from mhe_classification.models import build_model
from mhe_classification.preprocessing import new_normalize
from mhe_classification.train import Trainer, train
from mhe_core.errors import UserError
from mhe_core.training.processes import make_accelerator
from safetensors.torch import save_file
from timm.layers import DropPath

DIGITS = tuple("0123456789")
TINY = {"width": 0.0625, "image_size": 8, "batch_size": 8, "steps": 2, "device": "cpu"}
TIMM = {"model": "resnet10t", "image_size": 32, "batch_size": 4, "steps": 1, "device": "cpu"}


def settings(output, **changes):
    return ClassificationConfig(output=output, **{**TINY, **changes})


def trainer(output, **changes):
    config = ClassificationConfig(output=output, **changes)
    return Trainer(config, load_splits(config), make_accelerator("cpu"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    train(settings(path, ema=0.5))
    return path


def test_a_run_starts_from_the_averages_weights_of_another(run, tmp_path):
    expected = load(run).network.state_dict()
    found = new_model(settings(tmp_path, init=run), DIGITS, 8).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_other_classes_get_an_output_layer_at_random(run, tmp_path, caplog):
    expected = load(run).network.state_dict()
    for classes in (DIGITS[:7], tuple("abcdefghij")):  # of another number, of other names
        with caplog.at_level(logging.INFO, logger="mhe_classification"):
            model = new_model(settings(tmp_path, init=run), classes, 8)
        assert "its output layer is of other classes" in caplog.text
        caplog.clear()
        for name, value in model.state_dict().items():
            same = value.shape == expected[name].shape and torch.equal(value, expected[name])
            assert same == (not name.startswith("classifier")), name


@pytest.mark.parametrize("kind", ["safetensors", "torch", "nested", "wrapped"])
def test_a_run_starts_from_a_file(run, tmp_path, kind):
    weights = load(run).network.state_dict()
    file = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(weights, file)
    elif kind == "wrapped":
        torch.save({f"module.{name}": value for name, value in weights.items()}, file)
    else:
        torch.save(weights if kind == "torch" else {"state_dict": weights}, file)
    found = new_model(settings(tmp_path, init=file), DIGITS, 8).state_dict()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_weights_that_do_not_fit_are_named_and_nothing_is_claimed(run, tmp_path):
    with pytest.raises(UserError, match=r"--init with the weights of VGG9.*features\.0\.weight"):
        train(settings(tmp_path / "wide", init=run, width=0.125))
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(UserError, match="holds no weights"):
        train(settings(tmp_path / "wide", init=tmp_path / "text"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train(settings(tmp_path / "wide", init=tmp_path / "nowhere"))
    train(settings(tmp_path / "wide", width=0.125))  # the corrected command is not refused


def test_pretrained_weights_are_timms_but_for_the_output_layer(tmp_path):
    published = timm.create_model("resnet10t", num_classes=1000).state_dict()
    torch.save(published, tmp_path / "published.pt")
    # As after a download, but from a file.
    file = {"pretrained_cfg_overlay": {"file": str(tmp_path / "published.pt")}}
    found = build_model("resnet10t", 5, 32, pretrained=True, **file).state_dict()
    same = {name for name in found if torch.equal(found[name], published[name])}
    assert set(found) - same == {"fc.weight", "fc.bias"}
    with pytest.raises(UserError, match="there are no weights of vgg9"):
        build_model("vgg9", 5, 32, pretrained=True)


def test_images_are_normalized_as_the_weights_were_trained(run, tmp_path):
    pixels = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    usual = new_normalize(ClassificationConfig(output=tmp_path))
    assert torch.equal(usual(pixels), (pixels.float() - 127.5) / 128)
    config = ClassificationConfig(output=tmp_path, model="resnet18", pretrained=True)
    assert config.normalization == "model"
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]  # ImageNet's
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(new_normalize(config)(pixels), (pixels / 255 - mean) / std)
    assert ClassificationConfig(output=tmp_path, init=run).normalization == "published"


def test_options_reach_timms_model(tmp_path):
    options = {"model": "resnet10t", "drop_path": 0.25, "model_options": {"act_layer": "silu"}}
    model = new_model(ClassificationConfig(output=tmp_path, **options), DIGITS, 32)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert max(rates) == pytest.approx(0.25)
    assert any(isinstance(module, torch.nn.SiLU) for module in model.modules())
    for wrong in ({"drop_path": 0.1}, {"model_options": {"depth": 3}}):
        with pytest.raises(UserError, match="--model vgg9 with"):
            new_model(ClassificationConfig(output=tmp_path, **wrong), DIGITS, 32)


def weights_after(path, **changes):
    train(ClassificationConfig(output=path, **{**TIMM, **changes}))
    return torch.load(path / "checkpoints/last", weights_only=True)["state"]["model"]


def test_memory_savers_change_no_step(tmp_path):
    plain = weights_after(tmp_path / "plain")
    for flag in ("grad_checkpointing", "channels_last"):
        found = weights_after(tmp_path / flag, **{flag: True})
        for name in plain:
            if flag == "grad_checkpointing" and name.endswith(("running_mean", "running_var")):
                continue  # a batch norm that is computed twice moves its averages twice
            if not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(found[name], plain[name], rtol=1e-4, atol=1e-5)
    assert trainer(tmp_path, **TIMM, grad_checkpointing=True).model.grad_checkpointing
    kernel = trainer(tmp_path, **TIMM, channels_last=True).model.get_submodule("conv1.0").weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(UserError, match="--grad-checkpointing: vgg9 has none"):
        trainer(tmp_path, **TINY, grad_checkpointing=True)


def test_norms_and_biases_decay_or_not(tmp_path):
    for decays in (True, False):
        found = trainer(tmp_path, **TINY, decay_norm_bias=decays)
        kept = {
            parameter: group["weight_decay"]
            for group in found.optimizer.param_groups
            for parameter in group["params"]
        }
        for parameter in found.model.parameters():
            expected = 5e-4 if decays or parameter.ndim > 1 else 0
            assert kept[parameter] == expected


def test_cutmix_puts_a_rectangle_of_another_image_in(tmp_path):
    torch.manual_seed(0)
    images = torch.randn(8, 3, 8, 8)
    labels = torch.arange(8)
    mixed, targets = trainer(tmp_path, **TINY, cutmix=1.0).mixup(images.clone(), labels)
    own, other = mixed == images, mixed == images.flip(0)
    assert (own | other).all()
    assert not own.all()
    share = own.float().mean((1, 2, 3))
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    torch.testing.assert_close(targets[labels, labels], share)


def test_random_erasing_covers_a_rectangle_with_noise(tmp_path):
    images = torch.full((16, 3, 8, 8), 7.0)
    erased = trainer(tmp_path, **TINY, random_erasing=1.0).erase(images.clone())
    hidden = (erased != 7).all(1)
    assert hidden.flatten(1).any(1).float().mean() > 0.8
    for mask in hidden[hidden.flatten(1).any(1)]:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert mask.sum() == len(rows) * len(columns)
        assert rows[-1] - rows[0] + 1 == len(rows)
    untouched = trainer(tmp_path, **TINY).erase(images.clone())
    assert torch.equal(untouched, images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutmix": 1.0, "batch_size": 7}, "even --batch-size"),
        ({"cutmix": -1.0}, "--cutmix at least 0, got -1"),
        ({"cutmix": 1.0, "loss": "released"}, "--cutmix goes with"),
        ({"random_erasing": 1.5}, "--random-erasing from 0 to 1, got 1.5"),
        ({"drop_path": 1.0}, "--drop-path"),
        ({"pretrained": True, "init": "somewhere"}, "--pretrained or --init"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, **{**TINY, **changes})


def test_evaluation_decodes_in_as_many_workers_as_asked(tmp_path, monkeypatch):
    from mhe_classification import test

    asked = []
    original = test.whole_set

    def seen(*arguments, workers, **others):
        asked.append(workers)
        return original(*arguments, workers=workers, **others)

    monkeypatch.setattr(test, "whole_set", seen)
    train(settings(tmp_path / "run", workers=3))
    assert asked == [3]
