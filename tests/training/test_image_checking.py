"""Every image is read to its end before training, once, and all damaged ones are named together."""

import logging

import numpy as np
import pytest
from mhe_core.training.images import DataError, check_files, for_each, load_folder
from PIL import Image


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Photographs as JPEG, of a set that is too large for the memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("mhe_core.training.images.loading.IN_MEMORY", 0)
    load_folder.cache_clear()
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / label / f"{i}.jpg")
    yield tmp_path / "train"
    load_folder.cache_clear()


def truncate(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 3 // 4])
    with Image.open(file) as image:
        image.verify()  # which is how such a file gets past a check of headers


def test_truncated_files_of_a_large_set_are_all_named(folder):
    truncate(folder / "cat/1.jpg")
    truncate(folder / "dog/0.jpg")
    with pytest.raises(DataError, match=r"(?s)2 of 6 .*cat/1\.jpg: .*truncated.*dog/0\.jpg") as got:
        load_folder(folder)
    assert "cat/0.jpg" not in str(got.value)


def test_another_size_in_a_large_set_is_named(folder):
    Image.new("RGB", (8, 9)).save(folder / "dog/2.jpg")
    with pytest.raises(DataError, match=r"dog/2\.jpg is 9×8 pixels, the first image is 64×48"):
        load_folder(folder)
    load_folder(folder, size=(16, 16))


def test_what_was_checked_is_not_read_again_until_it_changes(folder, monkeypatch, caplog):
    from mhe_core.training.images import checking

    read = []
    whole = checking.read_to_the_end
    monkeypatch.setattr(checking, "read_to_the_end", lambda f: (read.append(f.name), whole(f))[1])
    files = sorted(folder.glob("*/*.jpg"))
    with caplog.at_level(logging.INFO, logger="mhe_core"):
        check_files(folder, files)
    assert len(read) == 6
    assert "reading 6 of 6 images to their end, once" in caplog.text
    check_files(folder, files)
    assert len(read) == 6
    truncate(files[4])
    with pytest.raises(DataError, match=r"dog/1\.jpg"):
        check_files(folder, files)
    assert read[6:] == ["1.jpg"]
    with pytest.raises(DataError, match=r"dog/1\.jpg"):  # a damaged file is never taken for checked
        check_files(folder, files)


def test_without_a_place_for_the_list_all_is_checked_each_time(folder, monkeypatch, caplog):
    (folder / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    for _ in range(2):
        check_files(folder, sorted(folder.glob("*/*.jpg")))
    assert caplog.text.count("cannot keep the list of checked images") == 2


def test_a_damaged_list_is_written_anew(folder):
    files = sorted(folder.glob("*/*.jpg"))
    check_files(folder, files)
    (journal,) = (folder.parent / "cache").rglob("*.json")
    journal.write_text("{")
    check_files(folder, files)
    assert journal.read_text().count("jpg") == 6


def test_only_ten_of_many_failures_are_listed():
    def fail(index):
        raise DataError(f"image {index}")

    with pytest.raises(DataError, match=r"25 of 25 images cannot be used") as failed:
        for_each(fail, 25)
    assert str(failed.value).count("\nimage") == 10
    assert "… and 15 more" in str(failed.value)
