"""What a folder holds: each image once, nothing hidden, and what is left out is said."""

import logging
import os

import pytest
from mhe_core.training.images import DataError, find_classes, find_images, load_folder
from PIL import Image
from torchvision.datasets import ImageFolder


def touch(path, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), level).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "cat/deep/0.png", "dog/1.jpg", "dog/B.JPG", "dog/a.gif"):
        touch(tmp_path / "train" / name)
    return tmp_path / "train"


def names(found):
    return [str(path.relative_to(found.root)) for path in found.paths]


def test_images_come_in_the_order_of_image_folder(folder):
    touch(folder / "cat-x/9.png")
    expected = ImageFolder(folder, is_valid_file=lambda path: True)
    found = find_classes(folder)
    assert [str(path) for path in found.paths] == [path for path, _ in expected.samples]
    assert list(found.labels) == expected.targets
    assert list(found.classes) == expected.classes


def test_hidden_files_and_folders_are_no_images_and_no_classes(folder):
    touch(folder / ".ipynb_checkpoints/1-checkpoint.png")
    touch(folder / "cat/.ipynb_checkpoints/1-checkpoint.png")
    touch(folder / "__MACOSX/cat/1.png")
    (folder / "cat/._1.png").write_bytes(b"\0\5\26\7 AppleDouble")
    (folder / ".DS_Store").write_bytes(b"")
    found = find_classes(folder)
    assert found.classes == ("cat", "dog")
    assert len(found.paths) == 6
    assert len(found.left_out["hidden"]) == 5
    assert "left out: 5 hidden (.DS_Store, .ipynb_checkpoints, __MACOSX, …)" in found.describe()


def test_circles_of_links_give_each_image_once(folder):
    os.symlink("..", folder / "cat/up")
    os.symlink(".", folder / "dog/here")
    os.symlink(folder, folder / "all")
    found = find_classes(folder)
    assert found.classes == ("cat", "dog")
    assert len(found.paths) == 6
    assert len(found.left_out["links to what is read already"]) == 3


def test_links_to_elsewhere_are_followed(folder, tmp_path):
    touch(tmp_path / "pool/7.png")
    touch(tmp_path / "pool/8.png")
    os.symlink(tmp_path / "pool", folder / "eel")
    touch(tmp_path / "other/9.png")
    os.symlink(tmp_path / "other/9.png", folder / "dog/9.png")
    os.symlink("1.jpg", folder / "dog/0.jpg")  # the image itself goes before its link
    assert names(find_classes(folder))[3:] == [
        "dog/1.jpg",
        "dog/9.png",
        "dog/B.JPG",
        "dog/a.gif",
        "eel/7.png",
        "eel/8.png",
    ]


def test_a_broken_link_to_an_image_is_named_not_passed_over(folder):
    os.symlink("nowhere.png", folder / "cat/3.png")
    with pytest.raises(DataError, match=r"cat/3\.png: .*No such file"):
        load_folder(folder)


def test_the_report_counts_what_is_found_and_what_is_left_out(folder, caplog):
    touch(folder / "stray.png")
    touch(folder / "dog/1.png")
    (folder / "cat/labels.csv").touch()
    (folder / "cat/raw.heic").touch()
    with caplog.at_level(logging.INFO, logger="mhe_core"):
        load_folder(folder)
    assert caplog.messages == [
        f"{folder}: 7 images, 2 classes of 3 to 4; left out: "
        "2 not images by their suffix (labels.csv, raw.heic); "
        "1 outside of the classes' folders (stray.png); "
        "1 names with several suffixes, all of them used (1)"
    ]


def test_a_class_without_images_says_what_is_there(folder):
    (folder / "newt").mkdir()
    (folder / "newt/1.heic").touch()
    with pytest.raises(DataError, match=r"none in newt \(left out: .*1\.heic"):
        find_classes(folder)


def test_a_flat_folder_has_no_class(tmp_path):
    touch(tmp_path / "1.png")
    with pytest.raises(DataError, match="expected one folder a class"):
        find_classes(tmp_path)
    assert names(find_images(tmp_path)) == ["1.png"]


def test_names_that_are_no_utf8_can_be_printed(folder):
    os.mkdir(os.fsencode(folder) + b"/caf\xe9")
    touch(folder / "caf\udce9/1.png")
    (folder / "caf\udce9/b\udce9.txt").touch()
    find_classes(folder).describe().encode()
