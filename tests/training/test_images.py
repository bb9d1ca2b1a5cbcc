"""Images: real loading code on small folders, and every broken folder named."""

import shutil

import numpy as np
import pytest
import torch
from mhe_core.training.batches import training_batches
from mhe_core.training.images import DataError, load_folder, load_images
from PIL import Image
from support.downloads import load_slowly
from support.forks import forked


def write(path, size=(8, 8), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "L": (), "CMYK": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, *channels), dtype=np.uint8)
    Image.fromarray(pixels, mode=mode).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            for i in range(3):
                write(tmp_path / split / label / f"{i}.png", seed=hash((split, label, i)) % 1000)
    return tmp_path


def test_digits_are_the_1797_of_scikit_learn_each_in_one_split():
    train, test = load_images("digits", "train"), load_images("digits", "test")
    assert len(train) + len(test) == 1797
    assert train.pixels.shape[1:] == (3, 32, 32)
    assert train.pixels.dtype == torch.uint8
    assert torch.bincount(test.labels).min() >= 34
    assert train.pixels.max() == 255


def test_a_folder_keeps_pixels_and_labels(folder):
    pixels = write(folder / "train/dog/0.png", seed=7)
    images = load_images(str(folder), "train")
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    batch, labels = images.__getitems__([3, 0])
    assert labels.tolist() == [1, 0]
    assert torch.equal(batch[0].permute(1, 2, 0), torch.from_numpy(pixels))


def test_test_labels_follow_the_training_classes(folder):
    shutil.rmtree(folder / "test/cat")
    images = load_images(str(folder), "test")
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [1, 1, 1]


def test_decoding_on_demand_gives_the_same_images(folder, monkeypatch):
    in_memory = load_folder(folder / "train")
    monkeypatch.setattr("mhe_core.training.images.loading.IN_MEMORY", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    load_folder.cache_clear()
    on_demand = load_folder(folder / "train")
    load_folder.cache_clear()
    assert on_demand.pixels is None
    batches = training_batches(on_demand, 2, seed=0, workers=1)
    for batch, expected in zip(batches, training_batches(in_memory, 2, seed=0), strict=False):
        assert all(map(torch.equal, batch, expected))
        break
    assert torch.equal(on_demand.__getitems__(range(6))[0], in_memory.pixels)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_modes_become_rgb(folder, mode):
    write(folder / f"train/cat/x.{'jpg' if mode == 'CMYK' else 'png'}", mode=mode)
    assert load_images(str(folder), "train").pixels.shape == (7, 3, 8, 8)


def test_images_of_several_sizes_want_a_size(folder):
    write(folder / "train/dog/large.png", size=(16, 16))
    with pytest.raises(DataError, match=r"large\.png is 16×16 pixels, the first image is 8×8"):
        load_images(str(folder), "train")
    assert load_images(str(folder), "train", size=(4, 6)).pixels.shape == (7, 3, 4, 6)


def damage(folder, what):
    if what == "missing":
        shutil.rmtree(folder / "train")
        return "expected a folder of images at .*train"
    if what == "empty class":
        (folder / "train/eel").mkdir()
        return "eel"
    if what == "new class":
        write(folder / "test/newt/0.png")
        return "newt"
    file = folder / "train/dog/1.png"
    if what == "truncated":
        file.write_bytes(file.read_bytes()[:60])
    elif what == "text":
        file.write_text("not an image")
    elif what == "empty file":
        file.write_bytes(b"")
    return r"cannot read the image .*dog/1\.png"


def load_both_splits(folder):
    return [load_images(str(folder), split) for split in ("train", "test")]


@pytest.mark.parametrize(
    "what", ["missing", "empty class", "new class", "truncated", "text", "empty file"]
)
def test_what_is_broken_is_named(folder, what):
    message = damage(folder, what)
    with pytest.raises(DataError, match=message):
        load_both_splits(folder)


def test_data_that_is_nothing_known_is_said():
    with pytest.raises(DataError, match="'no-such'"):
        load_images("no-such", "train")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_that_is_not_there_says_how_to_get_it(tmp_path, name):
    with pytest.raises(DataError, match="--download"):
        load_images(name, "train", data_dir=tmp_path)


def test_of_two_processes_one_downloads_and_the_other_waits(tmp_path):
    data = tmp_path / "not/yet/there"
    with (
        forked(load_slowly, data, tmp_path / "ready0") as one,
        forked(load_slowly, data, tmp_path / "ready1") as other,
    ):
        one.join()
        other.join()
        assert (one.exitcode, other.exitcode) == (0, 0)


def test_cifar10_is_read_in_its_own_format(tmp_path, monkeypatch):
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    rng = np.random.default_rng(0)

    def entry(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    part = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [3, 1, 0, 9]}
    names = [f"class{i}" for i in range(10)]
    meta = entry("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "train_list", [entry("data_batch_1", part)])
    monkeypatch.setattr(CIFAR10, "test_list", [entry("test_batch", part)])
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    images = load_images("cifar10", "train", data_dir=tmp_path)
    assert images.classes == tuple(names)
    assert images.labels.tolist() == [3, 1, 0, 9]
    assert torch.equal(images.pixels, torch.from_numpy(part["data"].reshape(4, 3, 32, 32)))


def test_a_split_holds_out_a_fraction_of_each_class():
    images = load_images("digits", "train")
    kept, held = images.split(0.25)
    assert len(kept) + len(held) == len(images)
    counts = torch.bincount(images.labels)
    assert torch.equal(torch.bincount(held.labels), (counts * 0.25).round().long())
    joined = torch.cat([kept.pixels, held.pixels]).flatten(1).double().sum(1).sort().values
    assert torch.equal(joined, images.pixels.flatten(1).double().sum(1).sort().values)
