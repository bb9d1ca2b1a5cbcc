"""``align --check`` tells aligned faces from others; a stand-in detector says where they are."""

import numpy as np
import pytest
from PIL import Image
from sphereface_plus import align, alignment_check
from sphereface_plus.faces import SIZES, Face


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """What ``align --check`` prints of two people with four faces each, found shifted by (x, y)."""
    devices = []

    def run(*flags, shift=(0.0, 0.0), size="112x96"):
        height, width = SIZES[size][0] if size in SIZES else map(int, size.split("x"))
        for name in ("anna/a", "bert/b"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            for number in range(4):
                Image.new("RGB", (width, height)).save(tmp_path / f"{name}{number}.png")

        def detector(device):
            devices.append(device)
            box = np.array([0.0, 0.0, width, height])
            return lambda image: [Face(box, 1.0, SIZES["112x96"][1] + shift)]

        monkeypatch.setattr(alignment_check, "FaceDetector", detector)
        align.main([f"--check={tmp_path}", *flags])
        head, *folders, verdict = capsys.readouterr().out.splitlines()
        assert head.split("\t")[:3] == ["folder", "images", "with a face"]
        return folders, verdict

    run.devices = devices
    return run


def test_faces_at_the_reference_points_are_aligned(check):
    folders, verdict = check()
    assert folders == ["anna\t4\t4\t112x96\t0.0", "bert\t4\t4\t112x96\t0.0"]
    assert verdict.startswith("aligned: 0.0 pixels")
    assert "over 8 faces" in verdict


@pytest.mark.parametrize(
    ("shift", "aligned"), [((3.0, -4.0), True), ((3.1, -4.1), False), ((0, 20), False)]
)
def test_how_far_they_are_and_where(check, shift, aligned):
    folders, verdict = check(shift=shift)
    distance = np.hypot(*shift)
    assert folders[0].endswith(f"\t{distance:.1f}")
    assert verdict.startswith("aligned: " if aligned else "NOT aligned as expected: ")
    assert f"{shift[0]:+.1f} to the right and {shift[1]:+.1f} down" in verdict


def test_other_sizes_have_no_reference_points(check):
    folders, verdict = check(size="50x40")
    assert folders[0].startswith("anna\t4\t0\t50x40\tnan")
    assert folders[2].startswith("no reference points for images of 50x40: expected ")
    assert verdict == "no face found: not aligned faces"


def test_its_flags(check):
    folders, _ = check("--each=2", "--device=cuda:7")
    assert [line.split("\t")[1] for line in folders] == ["2", "2"]
    assert check.devices == ["cuda:7"]
    folders, _ = check("--each=0")
    assert [line.split("\t")[1] for line in folders] == ["4", "4"]


def test_an_absent_and_an_empty_folder(tmp_path):
    config = alignment_check.CheckConfig
    with pytest.raises(FileNotFoundError, match=r"expected a folder of faces at .*absent"):
        alignment_check.check_alignment(config(check=tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"expected images in .*, found none"):
        alignment_check.check_alignment(config(check=tmp_path))
