"""What people reported: errors of the machine, data that changed, pairs that cannot be used."""

import shutil

import pytest
import torch
from mhe_core.training.checkpoint import CheckpointError
from mhe_core.training.images import DataError, load_folder
from PIL import Image
from sphereface_plus import align as align_module
from sphereface_plus.align import AlignConfig, DetectionError, align
from sphereface_plus.compare import CompareConfig
from sphereface_plus.config import FaceConfig
from sphereface_plus.embedding import load_embedder
from sphereface_plus.faces import FaceDetector
from sphereface_plus.train import train

SMALL = {"model": "sfnet4", "width": 0.1, "dim": 8, "lr": 0.02, "batch_size": 4, "steps": 4}


@pytest.fixture
def people(tmp_path):
    for person in ("Ann", "Bo", "Cy"):
        for i in range(1, 5):
            file = tmp_path / "people" / person / f"{person}_{i:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (40 * i, 60 * len(person), 7)).save(file)
    return tmp_path / "people"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_an_error_of_the_machine_is_no_fact_about_a_photograph(
    people, tmp_path, monkeypatch, error
):
    def fail(*_, **__):
        raise error

    detector = FaceDetector()
    monkeypatch.setattr(detector.mtcnn, "detect", fail)
    monkeypatch.setattr(align_module, "FaceDetector", lambda *_: detector)
    job = AlignConfig(images=people, output=tmp_path / "aligned")
    with pytest.raises(DetectionError, match=r"failed on Ann/Ann_0001\.png .* same command"):
        align(job)
    assert not (tmp_path / "aligned" / "Ann").exists()
    monkeypatch.undo()
    report = align(job)  # searched again
    assert len(report["without_a_face"]) == 12


def test_photographs_too_small_for_a_face_have_none():
    detector = FaceDetector()
    for size in ((1, 1), (19, 300), (25, 25)):
        assert detector(Image.new("RGB", size, "grey")) == []


def test_a_run_does_not_go_on_with_other_people(people, tmp_path):
    run = {"output": tmp_path / "run", "data": str(people), "checkpoint_every": 2, **SMALL}
    train(FaceConfig(**run))
    (tmp_path / "run" / "summary.json").unlink()
    load_folder.cache_clear()
    shutil.move(people / "Bo", people / "Di")
    with pytest.raises(CheckpointError, match="was trained on other images"):
        train(FaceConfig(**run, resume=True))
    shutil.move(people / "Di", people / "Bo")
    (people / "Bo" / "Bo_0004.png").unlink()
    load_folder.cache_clear()
    with pytest.raises(CheckpointError, match="was trained on other images"):
        train(FaceConfig(**run, resume=True))


@pytest.mark.parametrize("regularizer", ["none", "mhe-core:mhe", "in-process:mhe"])
def test_a_plug_in_of_the_same_name_breaks_no_run(people, tmp_path, clash, regularizer):
    kinds = {"regularizer": regularizer, "hidden_regularizer": regularizer}
    run = {"output": tmp_path / "run", "data": str(people), **SMALL, "steps": 1}
    assert (train(FaceConfig(**run, **kinds))["penalty"] > 0) == (regularizer != "none")
    assert CompareConfig().regularizers == "none,mhe-core:mhe"


def test_moved_test_faces_are_no_other_settings_and_other_pairs_are(people, tmp_path):
    lines = "2\t1\n{0}\t1\t2\n{0}\t1\tBo\t1\nBo\t1\t2\nCy\t2\tBo\t2\n"
    for folder, first in (("tested", "Ann"), ("moved", "Ann"), ("other", "Cy")):
        shutil.copytree(people, tmp_path / folder)
        (tmp_path / folder / "pairs.txt").write_text(lines.format(first))

    def go_on(folder, steps):
        tested = {"test_data": tmp_path / folder, "pairs": tmp_path / folder / "pairs.txt"}
        run = {"output": tmp_path / "run", "data": str(people), **SMALL, "steps": steps}
        return train(FaceConfig(**run, **tested, resume=True))

    go_on("tested", steps=1)
    shutil.rmtree(tmp_path / "tested")
    assert "test_accuracy" in go_on("moved", steps=2)
    with pytest.raises(CheckpointError, match="is of a run with other --pairs"):
        go_on("other", steps=3)


def test_pairs_that_cannot_be_used_are_named_before_the_first_step(people, tmp_path):
    lines = ["Ann/Ann_0001 Ann/Ann_0002 1", "Ann/Ann_0001 Bo/Bo_0002 0"]
    pairs = tmp_path / "pairs.txt"
    settings = {"output": tmp_path / "run", "data": str(people), "test_data": people, **SMALL}

    pairs.write_text("\n".join(lines))
    with pytest.raises(DataError, match="at least two folds"):
        train(FaceConfig(pairs=pairs, **settings))
    pairs.write_text("\n".join(2 * lines))
    (people / "Bo" / "Bo_0002.png").write_bytes(b"damaged")
    held_out = tmp_path / "held_out"
    shutil.copytree(people, held_out)
    shutil.rmtree(people / "Bo")
    with pytest.raises(DataError, match=r"Bo_0002\.png"):
        train(FaceConfig(pairs=pairs, **{**settings, "test_data": held_out}))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_images_too_small_for_a_network_are_named(people, tmp_path):
    settings = {**SMALL, "model": "inception_resnet_v1", "width": 1.0}
    with pytest.raises(ValueError, match="a size that inception_resnet_v1 takes, got 16x16"):
        train(FaceConfig(output=tmp_path / "run", data=str(people), **settings))


def test_weights_that_are_none_are_named(tmp_path):
    file = tmp_path / "weights.pt"
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"weights\.pt to be a state dict"):
        load_embedder("facenet-casia", file)
    with pytest.raises(FileNotFoundError, match="expected weights at"):
        load_embedder("facenet-casia", tmp_path / "none.pt")
