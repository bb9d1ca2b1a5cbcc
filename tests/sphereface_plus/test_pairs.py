"""Pairs files: what is read, what is refused and named; and pairs that are drawn."""

import numpy as np
import pytest
import torch
from mhe_core.training.images import DataError, ImageSet
from PIL import Image
from sphereface_plus.data import split_people
from sphereface_plus.pair_files import Pair, read_pairs
from sphereface_plus.pairs import draw_pairs, find_pairs

LINES = ["2\t1", "Ann_Lee\t1\t2", "Ann_Lee\t1\tBo\t3", "Bo\t1\t3", "Bo\t2\tAnn_Lee\t2"]


def write(tmp_path, lines):
    file = tmp_path / "pairs.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_reads_the_published_format(tmp_path):
    expected = [
        Pair("Ann_Lee/Ann_Lee_0001", "Ann_Lee/Ann_Lee_0002", True, 0),
        Pair("Ann_Lee/Ann_Lee_0001", "Bo/Bo_0003", False, 0),
        Pair("Bo/Bo_0001", "Bo/Bo_0003", True, 1),
        Pair("Bo/Bo_0002", "Ann_Lee/Ann_Lee_0002", False, 1),
    ]
    assert read_pairs(write(tmp_path, LINES)) == expected
    assert read_pairs(write(tmp_path, [line.replace("\t", "  ") for line in LINES])) == expected
    spaced = [line.replace("Ann_Lee", "Ann Lee") for line in LINES]
    assert read_pairs(write(tmp_path, spaced))[0].first == "Ann Lee/Ann Lee_0001"


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
        names = [found.images.files[side[index]].stem for side in (found.left, found.right)]
        assert names == [image.split("/")[1] for image in (pair.first, pair.second)]


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


def test_byte_order_marks_utf_16_and_any_line_end_are_read(tmp_path):
    expected = read_pairs(write(tmp_path, LINES))
    file = tmp_path / "other.txt"
    for encoding in ("utf-8-sig", "utf-16", "utf-8"):
        for end in ("\n", "\r\n", "\r"):
            file.write_bytes(end.join([*LINES, "", ""]).encode(encoding))
            assert read_pairs(file) == expected
    file.write_bytes("2\t1\nAnn_Léa 1 2".encode("latin-1"))
    with pytest.raises(DataError, match=r"UTF-8 or UTF-16 in .*other\.txt"):
        read_pairs(file)
    file.write_bytes(bytes(range(1, 128)) + b"\0")
    with pytest.raises(DataError, match=r"other\.txt, got a binary file"):
        read_pairs(file)
    file.write_bytes(b"")
    with pytest.raises(DataError, match=r"other\.txt:1: expected text, got an empty"):
        read_pairs(file)


def test_lfws_form_with_one_number_is_put_into_folds(tmp_path):
    same = [f"Ann\t{i}\t{i + 1}" for i in range(1, 26)]
    different = [f"Ann\t{i}\tBo\t{i}" for i in range(1, 26)]
    pairs = read_pairs(write(tmp_path, ["25", *same, *different]))
    assert [pair.same for pair in pairs] == [True] * 25 + [False] * 25
    folds = np.array([pair.fold for pair in pairs])
    for half in (folds[:25], folds[25:]):
        assert (np.diff(half) >= 0).all()
        assert set(np.bincount(half)) == {2, 3}
        assert len(set(half)) == 10
    with pytest.raises(DataError, match="1 folds of 26 same and 26 different"):
        read_pairs(write(tmp_path, ["26", *same, *different]))


def test_two_lines_a_pair_are_read_as_in_calfw_and_cplfw(tmp_path):
    lines = ["Ann_0001.jpg 1", "Ann_0002.jpg 1", "Ann_0001.jpg 0", "Bo_0003.jpg 0"] * 2
    pairs = read_pairs(write(tmp_path, lines))
    assert pairs[0] == Pair("Ann_0001.jpg", "Ann_0002.jpg", True, 0)
    assert [(pair.same, pair.fold) for pair in pairs] == [
        (True, 0), (False, 0), (True, 1), (False, 1)
    ]  # fmt: skip
    for line, message in (
        ("Bo_0003.jpg 1", r"pairs.txt:4: expected label 0 in both lines, got 1"),
        ("Bo_0003.jpg", r"pairs.txt:4: expected an image and a label"),
        ("Bo_0003.jpg x", r"pairs.txt:4: expected an image and a label"),
    ):
        with pytest.raises(DataError, match=message):
            read_pairs(write(tmp_path, [*lines[:3], line]))
    with pytest.raises(DataError, match="two lines a pair, got 3 lines"):
        read_pairs(write(tmp_path, lines[:3]))


@pytest.mark.parametrize(
    "line", ["a.jpg b.jpg {}", "{} a.jpg b.jpg", "a.jpg\tb.jpg\t{}", "{},a.jpg,b.jpg"]
)
def test_two_images_and_a_label_are_read_as_agedbs_pairs(tmp_path, line):
    labels = ["1", "0", "1", "-1"]
    pairs = read_pairs(write(tmp_path, [line.format(label) for label in labels]))
    assert [pair.same for pair in pairs] == [True, False, True, False]
    assert (pairs[0].first, pairs[0].second) == ("a.jpg", "b.jpg")
    with pytest.raises(DataError, match=r"pairs.txt:2: expected two images and a label"):
        read_pairs(write(tmp_path, [line.format(1), line.format(7)]))


def test_cfps_folder_is_read(tmp_path):
    protocol = tmp_path / "Protocol"
    for letter, kind in (("F", "frontal"), ("P", "profile")):
        protocol.mkdir(exist_ok=True)
        names = [f"{n} ../Data/Images/00{n}/{kind}/01.jpg\r\n" for n in (1, 2, 3)]
        (protocol / f"Pair_list_{letter}.txt").write_text("".join(names))
    for fold in ("01", "02"):
        folder = protocol / "Split" / "FP" / fold
        folder.mkdir(parents=True)
        (folder / "same.txt").write_text("1,1\n")
        (folder / "diff.txt").write_text("1,2\n3,2\n")
    pairs = read_pairs(protocol / "Split" / "FP")
    assert pairs[0] == Pair("001/frontal/01.jpg", "001/profile/01.jpg", True, 0)
    assert pairs[5] == Pair("003/frontal/01.jpg", "002/profile/01.jpg", False, 1)
    assert [pair.same for pair in pairs] == [True, False, False] * 2
    (protocol / "Split" / "FP" / "02" / "diff.txt").write_text("1,9\n")
    with pytest.raises(DataError, match=r"diff.txt:1: expected two numbers of CFP's lists"):
        read_pairs(protocol / "Split" / "FP")
    with pytest.raises(DataError, match="Protocol/Split/FP"):
        read_pairs(protocol)


def test_images_are_found_with_or_without_their_suffix(tmp_path):
    make_faces(tmp_path, ["a.jpg", "b.png", "sub/c.jpg", "sub/c.png", "._a.jpg"])
    pairs = [Pair("a.jpg", "b.jpg", True, 0), Pair("a", "sub/c.png", False, 1)]
    found = find_pairs(pairs, tmp_path)
    assert sorted(path.name for path in found.images.files) == ["a.jpg", "b.png", "c.png"]
    with pytest.raises(DataError, match=r"expected one image .*c, found c\.jpg, c\.png"):
        find_pairs([Pair("a", "sub/c", False, 0)], tmp_path)


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


def test_people_with_two_images_each_give_as_many_same_pairs_as_asked_for():
    labels = torch.arange(3_000).repeat(2)
    images = ImageSet(labels, tuple(map(str, range(3_000))), (2, 2), pixels=None)
    pairs = draw_pairs(images, folds=10, per_fold=30, seed=3)
    assert len(pairs) == 600
    np.testing.assert_array_equal(pairs.same, labels[pairs.left] == labels[pairs.right])
    assert [pairs.same[pairs.fold == fold].sum() for fold in range(10)] == [30] * 10
    keys = {frozenset(pair) for pair in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)}
    assert len(keys) == 600
    every = draw_pairs(images, folds=2, per_fold=1500, seed=3)
    assert every.same.sum() == 3_000  # all that there are


def test_pairs_of_many_images_are_drawn_alike_for_all_pairs():
    # Two people of 1,500 and 501 images: their same pairs are as 1500·1499 to 501·500.
    labels = torch.tensor([0] * 1500 + [1] * 501)
    images = ImageSet(labels, ("a", "b"), (2, 2), pixels=None)
    pairs = draw_pairs(images, folds=10, per_fold=300, seed=0)
    share = (labels[pairs.left[pairs.same]] == 0).float().mean().item()
    assert share == pytest.approx(1500 * 1499 / (1500 * 1499 + 501 * 500), abs=0.02)
    low, high = np.percentile(pairs.left[pairs.same], (1, 99))
    assert low < 40
    assert high > 1600


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
