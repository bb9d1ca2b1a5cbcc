"""Packs of every writer, against what mxnet and the published readers found in them."""

import hashlib
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from mhe_core.training.images import DataError
from sphereface_plus.packs import RecordPack, read_verification_pack
from sphereface_plus.packs.recordio import RecordFile

PACKS = Path(__file__).parent / "vectors" / "packs"
EXPECTED = json.loads((PACKS / "expected.json").read_text())
EXPECTED_BIN = json.loads((PACKS / "expected_bin.json").read_text())
GOOD = ("face", "face2rec2", "plain", "chunks", "multilabel", "arraylabel0", "png")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def chunk(content, flag=0):
    """A chunk as the format says it."""
    head = struct.pack("<II", 0xCED7230A, flag << 29 | len(content))
    return head + content + bytes(-len(content) % 4)


def record(label, body=b"", further=()):
    return chunk(
        struct.pack("<IfQQ", len(further), label, 1, 0)
        + struct.pack(f"<{len(further)}f", *further)
        + body
    )


def write_pack(folder, records):
    """A pack of (key, record), in that order."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, content = [], b""
    for key, one in records:
        lines.append(f"{key}\t{len(content)}\n")
        content += one
    (folder / "train.rec").write_bytes(content)
    (folder / "train.idx").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def jpeg():
    return RecordPack(PACKS / "plain").encoded(0)


@pytest.mark.parametrize("name", GOOD)
def test_a_pack_has_the_images_and_labels_that_mxnet_reads(name):
    pack = RecordPack(PACKS / name)
    records = EXPECTED[name]["records"]
    images = sorted((r for r in records if r["body_bytes"]), key=lambda r: r["key"])
    assert len(pack) == len(images) == EXPECTED[name].get("images", len(images))
    assert pack.keys.tolist() == [r["key"] for r in images]
    assert pack.labels.dtype == torch.int64
    for i, expected in enumerate(images):
        label = expected["label"]
        assert pack.labels[i] == (label[0] if isinstance(label, list) else label)
        assert sha256(pack.encoded(i)) == expected["body_sha256"]
        pixels = pack.image(i)
        assert pixels.dtype == torch.uint8
        assert list(pixels.shape) == [3, *expected["size_hw"]]
        means = pixels.double().mean((1, 2)).numpy()
        np.testing.assert_allclose(means, expected["mean_rgb"], atol=0.3)  # swapped: off by 10
    assert len(pack.classes) == len({int(label) for label in pack.labels})


def test_the_file_alone_names_a_pack_and_without_index_its_order_counts(tmp_path):
    whole = RecordPack(PACKS / "face")
    assert RecordPack(PACKS / "face" / "train.rec").keys.tolist() == whole.keys.tolist()
    (tmp_path / "train.rec").write_bytes((PACKS / "face" / "train.rec").read_bytes())
    alone = RecordPack(tmp_path)
    assert torch.equal(alone.labels, whole.labels)
    assert alone.encoded(59) == whole.encoded(59)
    assert "train.idx is missing" in alone.remarks[0]


def test_records_of_any_bytes_are_read_as_they_were_written():
    file = RecordFile(PACKS / "raw" / "raw.rec")
    found = [file.record(offset).hex() for offset in file.offsets()]
    assert found == EXPECTED["raw"]["payloads_hex"]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("truncated_body.rec", "byte 3188: the file ends before the record does"),
        ("truncated_header.rec", "byte 6244: the file ends before the record does"),
        ("bad_magic.rec", "byte 0: expected the magic number 0xced7230a at 0, got 0x0"),
        ("second_chunk_missing.rec", "byte 0: .* its last chunk missing"),
    ],
)
def test_a_damaged_pack_is_named_even_where_mxnet_is_silent(file, message):
    with pytest.raises(ValueError, match=rf"{file} is damaged: record at {message}"):
        RecordPack(PACKS / "damaged" / file)


def test_an_index_that_does_not_fit_is_named(tmp_path, jpeg):
    pack = write_pack(tmp_path, [(0, record(0, jpeg)), (1, record(1, jpeg))])
    offset = len(record(0, jpeg))
    cases = {
        f"0\t0\n1\t{offset + 4}\n": "no record begins there",
        f"0\t0\n1\t{offset + 3}\n": "no record begins there",
        f"0\t0\n1\t{2 * offset}\n": "no record begins there",
        "0\t0\none\t2\n": "train.idx:2: expected a key and an offset, got b'one",
        "0\t0\n1\n": "train.idx:2: expected a key and an offset",
        "": "empty file",
        f"7\t0\n7\t{offset}\n": "expected every key once",
    }
    for content, message in cases.items():
        (pack / "train.idx").write_text(content)
        with pytest.raises(DataError, match=message):
            RecordPack(pack)
    (pack / "train.idx").write_text("0\t0\n")
    assert RecordPack(pack).remarks == [
        f"the last {offset} bytes of train.rec are not in the index"
    ]


def test_a_truncated_pack_is_named_before_any_image_is_read(tmp_path, jpeg):
    pack = write_pack(tmp_path, [(0, record(0, jpeg)), (1, record(1, jpeg))])
    content = (pack / "train.rec").read_bytes()
    (pack / "train.rec").write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"train\.rec is damaged: .* the file ends before"):
        RecordPack(pack)
    (pack / "train.rec").write_bytes(b"")
    with pytest.raises(DataError, match="empty file"):
        RecordPack(pack)


def test_images_that_the_header_counts_must_be_there(tmp_path, jpeg):
    header = record(0, further=(4, 4))
    with pytest.raises(DataError, match="the 3 images that the header counts, 1 of them"):
        RecordPack(write_pack(tmp_path, [(0, header), (1, record(0, jpeg)), (3, record(1, jpeg))]))
    records = [(0, header), (1, record(0, jpeg)), (2, record(0)), (3, record(1, jpeg))]
    with pytest.raises(DataError, match="an image in record 2, found none"):
        RecordPack(write_pack(tmp_path, records))
    with pytest.raises(DataError, match="an image in record 1, found none"):
        RecordPack(write_pack(tmp_path, [(0, record(0, jpeg)), (1, record(0))]))
    with pytest.raises(DataError, match="expected images"):
        RecordPack(write_pack(tmp_path, [(0, record(0, further=(1, 1)))]))


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), float("inf")])
def test_a_label_that_is_no_class_is_named(tmp_path, jpeg, label):
    with pytest.raises(DataError, match="a whole number ≥ 0 as the label of record 8"):
        RecordPack(write_pack(tmp_path, [(4, record(1, jpeg)), (8, record(label, jpeg))]))


def test_labels_above_two_to_the_24_are_exact_where_the_file_is(tmp_path, jpeg):
    labels = [2**24 + 2, 2**24 + 4, 5]
    pack = RecordPack(write_pack(tmp_path, [(i, record(x, jpeg)) for i, x in enumerate(labels)]))
    assert pack.labels.tolist() == labels
    assert pack.classes == ("5", "16777218", "16777220")
    assert "rounded by the format" in pack.remarks[0]


def test_a_magic_number_in_a_records_head_is_no_end_of_it(tmp_path, jpeg):
    # The id begins with the magic number at a multiple of 4: a writer cuts the record there.
    whole = struct.pack("<IfQQ", 0, 3.0, 0xCED7230A, 0) + jpeg
    cut = chunk(whole[:8], 1) + chunk(whole[12:], 3)
    pack = RecordPack(write_pack(tmp_path, [(1, record(1, jpeg)), (2, cut)]))
    assert pack.labels.tolist() == [1, 3]
    assert pack.encoded(1) == jpeg


def test_a_pack_is_shared_by_processes(tmp_path):
    pack = RecordPack(PACKS / "face")
    again = pickle.loads(pickle.dumps(pack))
    assert len(pickle.dumps(pack)) < 20_000
    assert torch.equal(again.image(7), pack.image(7))


def test_an_image_that_cannot_be_decoded_is_named_with_its_record(tmp_path):
    pack = RecordPack(write_pack(tmp_path, [(5, record(0, b"no jpeg")), (6, record(1, b"none"))]))
    with pytest.raises(DataError, match=r"train\.rec, record 6"):
        pack.image(1)
    with pytest.raises(IndexError, match="below 2, got 2"):
        pack[2]


def test_which_pack_of_a_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a pack such as train\.rec"):
        RecordPack(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a pack at"):
        RecordPack(tmp_path / "train.rec")
    for name in ("a.rec", "b.rec"):
        (tmp_path / name).write_bytes((PACKS / "png" / "train.rec").read_bytes())
    with pytest.raises(DataError, match=r"found a\.rec, b\.rec: name one"):
        RecordPack(tmp_path)


def test_the_pack_of_pairs_is_what_was_written():
    images, same = read_verification_pack(PACKS / "orl.bin")
    assert [sha256(image) for image in images] == EXPECTED_BIN["jpeg_sha256"]
    assert same == EXPECTED_BIN["issame"]


@pytest.mark.parametrize(
    "file",
    [*sorted(path.name for path in (PACKS / "bin_variants").glob("[!br]*.bin")), "bytearrays.bin"],
)
def test_every_pickle_of_pairs_is_read(file):
    images, same = read_verification_pack(PACKS / "bin_variants" / file)
    expected = EXPECTED_BIN["files"][f"bin_variants/{file}"]
    assert len(images) == expected["n_images"] == 2 * len(same)
    assert [sha256(image) for image in images] == EXPECTED_BIN["jpeg_sha256"][: len(images)]
    assert same == expected["issame"]
    assert all(type(value) is bool for value in same)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("refuse_global.bin", r"it asks for posix\.getpid"),
        ("refuse_codecs.bin", r"it asks for _codecs\.lookup"),
        ("bad_truncated.bin", "truncated"),
        ("bad_odd_count.bin", "even number of images .* got 5"),
        ("bad_not_jpeg.bin", "cannot read the image .*, image 1"),
    ],
)
def test_hostile_and_damaged_pickles_are_refused(file, message):
    with pytest.raises(ValueError, match=message) as failure:
        read_verification_pack(PACKS / "bin_variants" / file)
    assert file in str(failure.value)


class Hostile:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (([], []), "an even number of images"),
        (([b"x"], [True]), "an even number of images .* got 1"),
        ((["text", "text"], [True]), "as bytes, got str"),
        (([b"x", b"y"], [2]), "a boolean, got 2"),
        (([b"x", b"y"], [None]), "a boolean, got None"),
        (([b"x", b"y"], [True, False]), "expected 1 booleans"),
        ([1, 2, 3], "images and booleans, got list"),
        ({"images": []}, "images and booleans, got dict"),
        (([np.zeros(3), np.zeros(3)], [True]), "numbers of type"),
        (([np.array(["a"], dtype=object)] * 2, [True]), "numbers of type"),
        (([Hostile(print, ("run",)), b"x"], [True]), r"it asks for _*builtins?_*\.print"),
        (([Hostile(np.load, ("file",)), b"x"], [True]), "it asks for numpy"),
        (([Hostile(np.dtype, ("O",)), b"x"], [True]), "numbers of type 'O'"),
    ],
)
def test_pickles_of_anything_else_are_refused(tmp_path, capsys, content, message):
    file = tmp_path / "pairs.bin"
    for protocol in (2, 3, 5):
        file.write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(ValueError, match=message):
            read_verification_pack(file)
    assert capsys.readouterr().out == ""


def test_a_pickle_that_goes_on_after_its_end_is_refused(tmp_path):
    file = tmp_path / "pairs.bin"
    file.write_bytes((PACKS / "orl.bin").read_bytes() + b"more")
    with pytest.raises(DataError, match="goes on after its end"):
        read_verification_pack(file)
    with pytest.raises(FileNotFoundError, match="a verification pack at"):
        read_verification_pack(tmp_path / "none.bin")
