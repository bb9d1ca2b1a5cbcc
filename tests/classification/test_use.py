"""A trained run in use: loaded, predicting, exported, tested on other images."""

import json
from pathlib import Path

import mhe_classification
import numpy as np
import pytest
import timm
import torch
from mhe_classification.config import ClassificationConfig
from mhe_classification.export import ExportConfig, export
from mhe_classification.predict import PredictConfig, predict
from mhe_classification.test import TestConfig
from mhe_classification.test import test as evaluate
from mhe_classification.train import train
from mhe_core.errors import UserError
from mhe_core.training.export import FORMATS
from mhe_core.training.images import DataError, load_images
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.datasets import load_digits


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a moving average, whose weights are not the last step's."""
    path = tmp_path_factory.mktemp("runs") / "run"
    train(
        ClassificationConfig(
            output=path,
            width=0.0625,
            image_size=16,
            batch_size=64,
            steps=20,
            ema=0.9,
            device="cpu",
            regularizer="half_mhe",
        )
    )
    return path


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Digits as PNG files in folders of their classes, at a size of their own."""
    root = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    for label in (3, 7):
        (root / str(label)).mkdir()
        for number, pixels in enumerate(digits.images[digits.target == label][:6]):
            image = Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8))
            image.resize((16, 16), Image.Resampling.BILINEAR).save(root / f"{label}/{number}.png")
    return root


def plain_network(run):
    """The average's weights in a network built by hand."""
    saved = torch.load(run / "checkpoints/best", weights_only=True)
    network = timm.create_model("vgg9", num_classes=10, img_size=16, width=0.0625)
    weights = {name.removeprefix("module."): x for name, x in saved["state"]["ema"].items()}
    network.load_state_dict(weights)
    last = saved["state"]["model"]
    assert any(not torch.equal(weights[name], last[name]) for name in weights)
    return network.eval()


def test_a_run_is_loaded_with_the_averages_weights(run):
    classifier = mhe_classification.load(run)
    assert classifier.classes == tuple("0123456789")
    assert classifier.image_size == 16
    assert not any(module.training for module in classifier.modules())
    images = load_images("digits", "test", size=(16, 16))
    with torch.no_grad():
        expected = plain_network(run)((images.pixels.float() - 127.5) / 128)
        torch.testing.assert_close(classifier(images.pixels), expected)
    wrong = (expected.argmax(-1) != images.labels).float().mean().item()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test_error"] == pytest.approx(wrong)
    torch.testing.assert_close(classifier.probabilities(images.pixels), expected.softmax(-1))


def test_an_average_saved_through_its_wrapper_still_loads(run, tmp_path):
    content = torch.load(run / "checkpoints/best", weights_only=True)
    for how in ("wrapped", "plain"):
        (tmp_path / how / "checkpoints").mkdir(parents=True)
        (tmp_path / how / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
        prefix = "module." if how == "wrapped" else ""
        average = content["state"]["ema"]
        state = {prefix + name.removeprefix("module."): value for name, value in average.items()}
        torch.save(
            {**content, "state": {**content["state"], "ema": state}},
            tmp_path / how / "checkpoints/best",
        )
    pixels = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    first, second = (mhe_classification.load(tmp_path / how) for how in ("wrapped", "plain"))
    assert torch.equal(first(pixels), second(pixels))


def test_predictions_are_the_networks_by_file(run, photographs):
    files = sorted(photographs.glob("*/*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(f).convert("RGB"))) for f in files])
    with torch.no_grad():
        logits = plain_network(run)((pixels.permute(0, 3, 1, 2).float() - 127.5) / 128)
    images = [str(photographs / "3"), *map(str, sorted((photographs / "7").iterdir()))]
    config = PredictConfig(run=run, images=images, top=2, batch_size=5, device="cpu")
    found = list(predict(config))
    assert [record["image"] for record in found] == [str(file) for file in files]
    for record, row in zip(found, logits.softmax(-1), strict=True):
        values, indices = row.topk(2)
        assert [int(entry["class"]) for entry in record["top"]] == indices.tolist()
        got = [entry["probability"] for entry in record["top"]]
        assert got == pytest.approx(values.tolist(), abs=1e-5)


def test_a_damaged_image_is_named_and_stops_none_of_the_others(run, photographs, tmp_path, capsys):
    from mhe_classification.predict import main

    (tmp_path / "broken.png").write_bytes(b"not an image")
    images = [tmp_path / "broken.png", photographs / "3/0.png", photographs / "3/1.png"]
    with pytest.raises(DataError, match=r"1 of 3 images:\n.*broken\.png"):
        main([str(run), *map(str, images), "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line.split("\t")[0]).name for line in lines] == ["0.png", "1.png"]
    with pytest.raises(DataError):
        main([str(run), *map(str, images), "--device", "cpu", "--json"])
    records = json.loads(capsys.readouterr().out)
    assert [set(record) for record in records] == [{"image", "error"}, *2 * [{"image", "top"}]]


def test_an_onnx_file_computes_what_was_trained(run, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    report = export(ExportConfig(run=run, output=tmp_path / "model.onnx"))
    assert report["largest_difference"] < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["classes"]) == list("0123456789")
    mean, std = (torch.tensor(json.loads(known[name]))[:, None, None] for name in ("mean", "std"))
    for batch_size in (1, 2, 7):
        pixels = torch.randint(256, (batch_size, 3, 16, 16), dtype=torch.uint8)
        images = (pixels - mean) / std
        (logits,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), plain_network(run)(images))
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_safetensors_hold_the_weights_and_what_one_must_know(run, tmp_path):
    file = tmp_path / "model.safetensors"
    assert export(ExportConfig(run=run, format="safetensors", output=file))["file"] == str(file)
    expected = plain_network(run).state_dict()
    found = load_file(file)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["classes"]) == list("0123456789")


def test_an_export_that_computes_something_else_is_not_written(run, tmp_path, monkeypatch):
    write, load = FORMATS["safetensors"]

    def load_something_else(*arguments):
        compute = load(*arguments)
        return lambda images: compute(images) + 0.1

    monkeypatch.setitem(FORMATS, "safetensors", (write, load_something_else))
    config = ExportConfig(run=run, format="safetensors", output=tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="its outputs differ by"):
        export(config)
    assert not list(tmp_path.iterdir())


def test_what_onnx_needs_and_is_not_installed_is_named(run, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="onnxscript: pip install onnx onnxruntime"):
        export(ExportConfig(run=run, output=tmp_path / "model.onnx"))
    assert not list(tmp_path.iterdir())


def test_other_images_are_tested_by_the_names_of_the_classes(run, photographs):
    evaluate(TestConfig(run=run, device="cpu"))
    own = (run / "test.json").read_text()
    report = evaluate(TestConfig(run=run, data=str(photographs), device="cpu"))
    assert (run / "test.json").read_text() == own
    assert report["images"] == 12
    assert set(report["class_accuracy"]) == {"3", "7"}
    right = [
        record["top"][0]["class"] == Path(record["image"]).parent.name
        for record in predict(PredictConfig(run=run, images=[str(photographs)], device="cpu"))
    ]
    assert report["test_accuracy"] == pytest.approx(sum(right) / 12)


def test_a_class_that_was_not_trained_on_is_named(run, tmp_path):
    (tmp_path / "seven").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "seven/0.png")
    with pytest.raises(DataError, match="seven"):
        evaluate(TestConfig(run=run, data=str(tmp_path), device="cpu"))
