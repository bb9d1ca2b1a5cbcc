"""The commands as a user types them: train, test, compare, from raw photographs to a report."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sphereface_plus import align, compare
from sphereface_plus import test as verify_command
from sphereface_plus import train as train_command
from sphereface_plus.compare import main as compare_main
from sphereface_plus.config import FaceConfig
from sphereface_plus.embedding import load_embedder
from sphereface_plus.test import TestConfig
from sphereface_plus.test import main as verify_main
from sphereface_plus.test import test as verify_run
from sphereface_plus.train import train
from sphereface_plus.verification import ten_fold
from support.forks import run_python
from support.programs import script
from support.wiring import count_calls

SMALL = ["--model=sfnet4", "--width=0.1", "--dim=16", "--batch-size=32", "--lr=0.02"]
PICTURES = ("roc.png", "scores.png", "errors.png")


def test_raw_photographs_to_a_report(orl, tmp_path, capsys):
    for person in ("orl_s01", "orl_s02", "orl_s03", "orl_s04"):
        shutil.copytree(orl / "train" / person, tmp_path / "raw" / person)
    for person in ("orl_s26", "orl_s27"):
        shutil.copytree(orl / "test" / person, tmp_path / "unseen" / person)
    pairs = tmp_path / "pairs.txt"
    lines = ["2\t5"]
    for fold in range(2):
        lines += [f"orl_s{26 + fold}\t{i}\t{i + 5}" for i in range(1, 6)]
        lines += [f"orl_s26\t{i}\torl_s27\t{i + fold}" for i in range(1, 6)]
    pairs.write_text("\n".join(lines) + "\n")

    align.main(["--images", str(tmp_path / "raw"), "--output", str(tmp_path / "aligned")])
    assert "40 images: 40 aligned, 0 without a face" in capsys.readouterr().out
    program = script("sphereface-plus")
    train = ("train", "--data", tmp_path / "aligned", "--output", tmp_path / "run", "--steps=30")
    run_python(program, *train, *SMALL)
    report_folder = tmp_path / "report"
    result = run_python(
        program,
        "test",
        tmp_path / "run",
        "--images",
        tmp_path / "unseen",
        "--align",
        "--pairs",
        pairs,
        "--output",
        report_folder,
    )
    report = json.loads((report_folder / "report.json").read_text())
    assert f"accuracy {100 * report['accuracy']:.2f}" in result.stdout
    assert (report["pairs"], report["images"]) == (20, 20)
    assert len(report["fold_accuracy"]) == 2
    for name in PICTURES:
        picture = np.asarray(Image.open(report_folder / name).convert("L"))
        assert min(picture.shape) > 150
        assert picture.std() > 5
    assert json.loads((report_folder / "aligned" / "align.json").read_text())["aligned"] == 20

    settings = TestConfig(run=tmp_path / "run", images=tmp_path / "aligned", pairs=pairs)
    with pytest.raises(FileNotFoundError, match="20 images of the pairs are not there"):
        verify_run(settings)


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "run"
    train(FaceConfig(output=folder, model="sfnet4", width=0.1, dim=8, steps=20, lr=0.02))
    return folder


@pytest.mark.parametrize("protocol", ["sphereface", "insightface"])
def test_report_is_ten_fold_of_embeddings_computed_by_hand(digits_run, tmp_path, protocol):
    from mhe_core.training.augment import normalize
    from sphereface_plus.data import digits
    from sphereface_plus.embedding import load_run

    report = verify_run(
        TestConfig(run=digits_run, output=tmp_path, protocol=protocol, batch_size=7)
    )
    model, *_ = load_run(digits_run)
    pairs = digits((32, 32))[1]

    @torch.no_grad()
    def embedding(index):
        x = normalize(pairs.images.pixels[index : index + 1])
        plain, mirrored = model.backbone(x)[0], model.backbone(x.flip(3))[0]
        return torch.cat([plain, mirrored]) if protocol == "sphereface" else plain + mirrored

    left, right = (torch.stack([embedding(i) for i in side]) for side in (pairs.left, pairs.right))
    expected = ten_fold(left, right, pairs.same, pairs.fold, protocol)
    # Batches round differently: a pair or two may change sides.
    np.testing.assert_allclose(report["fold_accuracy"], expected.accuracy, atol=0.02)
    np.testing.assert_allclose(report["fold_threshold"], expected.threshold, atol=0.02)
    assert report["tpr_at_fpr"]["0.001"] <= report["tpr_at_fpr"]["0.01"]


def test_pretrained_embedder_by_the_path_of_its_weights(orl, tmp_path):
    from facenet_pytorch import InceptionResnetV1

    torch.manual_seed(0)
    network = InceptionResnetV1(classify=True, num_classes=8631).eval()
    weights = tmp_path / "weights.pt"
    torch.save(network.state_dict(), weights)
    loaded = load_embedder("facenet-vggface2", weights)
    x = torch.randn(1, 3, 160, 160)
    network.classify = False
    torch.testing.assert_close(loaded(x), network(x))

    report = tmp_path / "report"
    lines = (orl / "pairs.txt").read_text().splitlines()
    pairs = tmp_path / "pairs.txt"
    some = [lines[1 + 60 * fold + offset] for fold in range(2) for offset in (0, 1, 30, 31)]
    pairs.write_text("\n".join(["2\t2", *some]) + "\n")
    arguments = ["--embedder=facenet-vggface2", "--weights", str(weights)]
    arguments += ["--images", str(orl / "test"), "--pairs", str(pairs), "--output", str(report)]
    verify_main(arguments)
    assert json.loads((report / "report.json").read_text())["embedder"] == "facenet-vggface2"

    torch.save({"wrong": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match=r"expected .* to fit InceptionResnetV1"):
        load_embedder("facenet-casia", weights)
    with pytest.raises(ValueError, match="expected an embedder"):
        load_embedder("facenet")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either a run directory or --embedder"),
        ({"run": "a", "embedder": "b"}, "either a run directory or --embedder"),
        ({"embedder": "facenet-casia"}, "--output"),
        ({"run": "a", "images": "b"}, "--images and --pairs together"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        TestConfig(**settings)


def test_compare_makes_table_and_curves_and_skips_what_is_done(tmp_path, capsys, monkeypatch):
    loaded = count_calls(monkeypatch, compare, "load_faces")
    command = ["--output", str(tmp_path), *SMALL, "--steps=6", "--log-every=2"]
    command += ["--margins=1,4", "--regularizers=none,mhe", "--seeds=0,1"]
    compare_main(command)
    assert len(loaded) == 1  # the images of eight runs
    first = capsys.readouterr().out
    table = json.loads((tmp_path / "table.json").read_text())
    assert list(table["methods"]) == ["m1", "m1-mhe", "m4", "m4-mhe"]
    for label, method in table["methods"].items():
        accuracies = [
            json.loads((tmp_path / label / f"seed{seed}" / "summary.json").read_text())[
                "test_accuracy"
            ]
            for seed in (0, 1)
        ]
        assert method["test_accuracy"]["mean"] == pytest.approx(100 * np.mean(accuracies))
        assert method["test_accuracy"]["std"] == pytest.approx(100 * np.std(accuracies, ddof=1))
    assert "m4, mhe minus none" in (tmp_path / "differences.md").read_text()
    assert np.asarray(Image.open(tmp_path / "curves.png").convert("L")).std() > 5
    untouched = (tmp_path / "m1" / "seed0" / "metrics.jsonl").stat().st_mtime_ns
    compare_main(command)
    assert len(loaded) == 1
    again = capsys.readouterr().out
    assert (tmp_path / "m1" / "seed0" / "metrics.jsonl").stat().st_mtime_ns == untouched
    assert again.splitlines()[-15:] == first.splitlines()[-15:]


@pytest.mark.parametrize("module", [align, train_command, verify_command, compare])
def test_every_command_has_help(module, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    assert (
        module.__name__.replace("sphereface_plus.", "sphereface-plus ") in capsys.readouterr().out
    )
