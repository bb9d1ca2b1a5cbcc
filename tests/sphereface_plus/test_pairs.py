"""Pairs files: what is read, what is refused and named; and pairs that are drawn."""

import numpy as np
import pytest
import torch
from mhe_core.training.images import DataError, ImageSet
from PIL import Image
from sphereface_plus.data import split_people
from sphereface_plus.pairs import Pair, draw_pairs, find_pairs, read_pairs

LINES = ["2\t1", "Ann_Lee\t1\t2", "Ann_Lee\t1\tBo\t3", "Bo\t1\t3", "Bo\t2\tAnn_Lee\t2"]


def write(tmp_path, lines):
    file = tmp_path / "pairs.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_reads_the_published_format(tmp_path):
    expected = [
        Pair(("Ann_Lee", 1), ("Ann_Lee", 2), True, 0),
        Pair(("Ann_Lee", 1), ("Bo", 3), False, 0),
        Pair(("Bo", 1), ("Bo", 3), True, 1),
        Pair(("Bo", 2), ("Ann_Lee", 2), False, 1),
    ]
    assert read_pairs(write(tmp_path, LINES)) == expected
    assert read_pairs(write(tmp_path, [line.replace("\t", "  ") for line in LINES])) == expected
    spaced = [line.replace("Ann_Lee", "Ann Lee") for line in LINES]
    assert read_pairs(write(tmp_path, spaced))[0].first == ("Ann Lee", 1)


def test_reads_the_real_pairs(orl):
    pairs = read_pairs(orl / "pairs.txt")
    assert len(pairs) == 600
    assert sum(pair.same for pair in pairs) == 300
    assert {pair.fold for pair in pairs} == set(range(10))
    found = find_pairs(pairs, orl / "test")
    assert len(found.images) == 150
    assert found.images.size == (112, 92)
    for index in (0, 299, 599):
        pair = pairs[index]
        names = [found.images.paths[side[index]].stem for side in (found.left, found.right)]
        assert names == [f"{name}_{number:04d}" for name, number in (pair.first, pair.second)]


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, "ten\t1", r"pairs.txt:1: expected the numbers of folds"),
        (1, "", r"pairs.txt:1: "),
        (2, "Ann_Lee\t1", r"pairs.txt:2: expected name, number, number, got"),
        (2, "Ann_Lee\t1\tBo\t2", r"pairs.txt:2: expected name, number, number, got"),
        (3, "Ann_Lee\t1\tBo\tthree", r"pairs.txt:3: .* whole numbers"),
        (3, "Ann_Lee\t1\tAnn_Lee\t2", r"pairs.txt:3: expected two different persons"),
        (5, None, r"pairs.txt:4: expected 2 folds of 1 same and 1 different"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, text, message):
    lines = [*LINES[: line - 1], *([] if text is None else [text]), *LINES[line:]]
    with pytest.raises(DataError, match=message):
        read_pairs(write(tmp_path, lines))


def make_faces(root, names):
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 14), (len(name) * 9 % 256, 0, 0)).save(file)


def test_missing_images_are_listed_or_skipped(tmp_path):
    make_faces(tmp_path, ["Ann_Lee/Ann_Lee_0001.jpg", "Ann_Lee/Ann_Lee_0002.PNG"])
    make_faces(tmp_path, ["Bo/Bo_0001.jpg", "Bo/Bo_0002.jpg"])
    pairs = read_pairs(write(tmp_path, LINES))
    with pytest.raises(FileNotFoundError, match=r"1 images .*Bo_0003.*--missing skip"):
        find_pairs(pairs, tmp_path)
    found = find_pairs(pairs, tmp_path, missing="skip")
    assert found.missing == ("Bo/Bo_0003",)
    assert found.same.tolist() == [True, False]
    assert found.fold.tolist() == [0, 1]
    assert len(found.images) == 3  # each image once, those of skipped pairs not at all
    with pytest.raises(DataError, match="at least one pair"):
        find_pairs(pairs[2:3], tmp_path, missing="skip")
    with pytest.raises(FileNotFoundError, match="folder of faces"):
        find_pairs(pairs, tmp_path / "nowhere")


def labelled(people, each):
    labels = torch.arange(people).repeat_interleave(each)
    return ImageSet(
        labels=labels,
        classes=tuple("abcdefgh"[:people]),
        size=(2, 2),
        pixels=labels[:, None, None, None].expand(-1, 3, 2, 2).to(torch.uint8),
    )


def test_drawn_pairs_are_different_and_balanced():
    images = labelled(5, 10)
    pairs = draw_pairs(images, folds=5, per_fold=20, seed=1)
    labels = images.labels.numpy()
    np.testing.assert_array_equal(pairs.same, labels[pairs.left] == labels[pairs.right])
    keys = {frozenset(pair) for pair in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)}
    assert len(keys) == len(pairs) == 5 * 40
    for fold in range(5):
        assert pairs.same[pairs.fold == fold].sum() == 20
    again = draw_pairs(images, folds=5, per_fold=20, seed=1)
    np.testing.assert_array_equal(again.left, pairs.left)
    with pytest.raises(DataError, match="0 same and 10 different"):
        draw_pairs(labelled(5, 1))


def test_people_are_split_and_relabelled():
    images = labelled(5, 3)
    kept, held_out = split_people(images, 2, seed=0)
    assert set(kept.classes) | set(held_out.classes) == set("abcde")
    assert not set(kept.classes) & set(held_out.classes)
    for part in (kept, held_out):
        values = part.pixels[:, 0, 0, 0].tolist()
        assert [part.classes[label] for label in part.labels.tolist()] == [
            "abcde"[v] for v in values
        ]
    with pytest.raises(DataError, match="hold out"):
        split_people(images, 4)
