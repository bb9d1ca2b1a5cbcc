"""Where the people to train on come from: folders, packs, lists."""

import os
from pathlib import Path

import pytest
import torch
from mhe_core.training.images import DataError
from PIL import Image
from sphereface_plus.config import FaceConfig
from sphereface_plus.packs import RecordPack, check_pack
from sphereface_plus.people import describe, load_people
from sphereface_plus.train import train

PACKS = Path(__file__).parent / "vectors" / "packs"


@pytest.fixture
def faces(tmp_path):
    """Three people in folders, the first with one image only, the last a link."""
    for person, count in (("Ann", 1), ("Bo", 3), ("Cy", 2)):
        for i in range(count):
            file = tmp_path / ("elsewhere" if person == "Cy" else "faces") / person / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 10), (40 * i, 9 * len(person), 7)).save(file)
    (tmp_path / "faces" / "Cy").symlink_to(tmp_path / "elsewhere" / "Cy")
    (tmp_path / "faces" / "Bo" / "._0.jpg").write_bytes(b"of macOS")
    (tmp_path / "faces" / ".ipynb_checkpoints").mkdir()
    return tmp_path / "faces"


def test_folders_with_one_image_links_and_hidden_files(faces):
    images = load_people(str(faces))
    assert images.classes == ("Ann", "Bo", "Cy")
    assert images.labels.bincount().tolist() == [1, 3, 2]
    assert describe(images) == "6 images of 3 people, 1 to 3 each (median 2), 10×8 pixels"


@pytest.mark.parametrize("name", ["face", "face/train.rec", "chunks", "plain"])
def test_a_pack_is_the_set_of_its_images(name):
    images, pack = load_people(str(PACKS / name)), RecordPack(PACKS / name)
    assert len(images) == len(pack)
    batch, labels = images.__getitems__([3])
    assert torch.equal(batch[0], pack.image(3))
    assert images.classes[int(labels[0])] == str(int(pack.labels[3]))


def test_a_pack_too_large_for_memory_is_read_when_needed_and_checked_once(tmp_path, monkeypatch):
    monkeypatch.setattr("mhe_core.training.images.loading.IN_MEMORY", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pack = tmp_path / "train.rec"
    pack.write_bytes((PACKS / "face" / "train.rec").read_bytes())
    (tmp_path / "train.idx").write_bytes((PACKS / "face" / "train.idx").read_bytes())
    images = load_people(str(tmp_path))
    assert images.pixels is None
    assert torch.equal(images.__getitems__([5])[0][0], RecordPack(tmp_path).image(5))
    monkeypatch.setattr("sphereface_plus.packs.checking.read_to_the_end", None)  # not called again
    check_pack(RecordPack(tmp_path), (112, 112))
    with pytest.raises(DataError, match="112×112 pixels, the first image is 8×8"):
        check_pack(RecordPack(tmp_path), (8, 8))


def test_a_damaged_image_in_a_large_pack_is_named_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("mhe_core.training.images.loading.IN_MEMORY", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = bytearray((PACKS / "face" / "train.rec").read_bytes())
    offset = 10552 + 8 + 24  # of image 3
    content[offset + 600 : offset + 5200] = bytes(4600)
    (tmp_path / "train.rec").write_bytes(content)
    (tmp_path / "train.idx").write_bytes((PACKS / "face" / "train.idx").read_bytes())
    with pytest.raises(DataError, match=r"train\.rec, record 3"):
        load_people(str(tmp_path))


LISTS = {
    "faces.txt": "{image} {label}\n",
    "faces.lst": "{image}\t{label}\n",
    "insightface.lst": "1\t{image}\t{label}\n",
    "im2rec.lst": "{number}\t{label}\t{image}\n",
    "several.lst": "{number}\t{label}\t0.5\t{image}\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_names_images_and_their_labels(faces, name):
    entries = [("Bo/0.png", 2**24 + 1), ("Ann/0.png", 7), ("Bo/1.png", 2**24 + 1)]
    lines = [
        LISTS[name].format(image=image, label=label, number=n)
        for n, (image, label) in enumerate(entries)
    ]
    (faces / name).write_text("".join(lines))
    images = load_people(str(faces / name))
    assert images.classes == ("7", "16777217")
    assert images.labels.tolist() == [1, 0, 1]
    assert [os.path.relpath(str(images.file(i)), faces) for i in range(3)] == [
        image for image, _ in entries
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Bo/1.png", r"faces.txt:2: expected an image and a label"),
        ("Bo/1.png 0.5", r"faces.txt:2: expected a whole number ≥ 0 as the label, got '0.5'"),
        ("Bo/9.png 3", r"Bo/9\.png"),
        ("1\t2\t3", r"faces.txt:2: expected an image and a label"),
    ],
)
def test_a_malformed_list_is_named(faces, line, message):
    (faces / "faces.txt").write_text(f"Ann/0.png Ann\n{line}\n")
    with pytest.raises(DataError, match=message):
        load_people(str(faces / "faces.txt"))


def test_a_run_trains_on_a_pack(tmp_path):
    settings = {"model": "sfnet4", "width": 0.1, "dim": 8, "lr": 0.02, "steps": 2, "batch_size": 8}
    run = FaceConfig(output=tmp_path, data=str(PACKS / "face"), image_size="28x28", **settings)
    assert train(run)["loss"] > 0
