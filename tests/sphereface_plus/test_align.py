"""Alignment: its geometry against an independent solver, the folder job on files of every kind."""

import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mhe_core.training.images import read_image
from PIL import Image
from sphereface_plus.align import AlignConfig, align
from sphereface_plus.faces import (
    LANDMARKS,
    SIZES,
    Face,
    FaceDetector,
    select_face,
    similarity,
    warp_face,
)
from support.forks import forked, run_python
from support.kills import kill


@settings(deadline=None, max_examples=50)
@given(
    scale=st.floats(0.05, 20),
    angle=st.floats(-3.1, 3.1),
    shift=st.floats(-500, 500),
    seed=st.integers(0, 99),
)
def test_similarity_recovers_a_known_one_and_is_least_squares_otherwise(scale, angle, shift, seed):
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = LANDMARKS @ rotation.T + [shift, -2 * shift]
    matrix = similarity(points, LANDMARKS)
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], LANDMARKS, atol=1e-6)

    # In the complex plane a similarity is z → a·z + b: least squares with nothing to constrain.
    noisy = points + np.random.default_rng(seed).normal(size=points.shape) * scale
    z, w = (p[:, 0] + 1j * p[:, 1] for p in (noisy, LANDMARKS))
    (a, b), *_ = np.linalg.lstsq(np.stack([z - z.mean(), np.ones(5)], 1), w, rcond=None)
    b -= a * z.mean()
    expected = [[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]]
    np.testing.assert_allclose(similarity(noisy, LANDMARKS), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("factor", "angle"), [(1, 0.0), (1.7, 0.3), (0.4, -0.5), (8, 0.2)])
def test_warped_pixels_land_on_the_reference_points(size, factor, angle):
    # A photograph with a blob at each landmark; where the blobs end up is measured.
    rotation = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    side = int(220 * factor)
    points = (LANDMARKS - [48, 56]) @ rotation.T + side / 2
    rows, columns = np.mgrid[:side, :side]
    photograph = sum(
        np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * (2.5 * factor) ** 2))
        for x, y in points
    )
    image = Image.fromarray((photograph * 255).astype(np.uint8)).convert("RGB")
    aligned = np.asarray(warp_face(image, points, size))[:, :, 0].astype(float)
    (height, width), targets = SIZES[size]
    assert aligned.shape == (height, width)
    rows, columns = np.mgrid[:height, :width]
    for x, y in targets:
        mass = aligned * ((columns - x) ** 2 + (rows - y) ** 2 < 64)
        centroid = (mass * columns).sum() / mass.sum(), (mass * rows).sum() / mass.sum()
        np.testing.assert_allclose(centroid, (x, y), atol=0.1)


def test_selection_rules():
    points = np.zeros((5, 2))
    central = Face(np.array([40.0, 40, 60, 60]), 0.9, points)
    large = Face(np.array([0.0, 0, 30, 30]), 0.8, points)
    sure = Face(np.array([70.0, 70, 90, 90]), 0.99, points)
    faces = [large, sure, central]
    assert select_face(faces, (100, 100), "centre") is central
    assert select_face(faces, (100, 100), "largest") is large
    assert select_face(faces, (100, 100), "probability") is sure


def test_landmarks_of_real_faces_come_to_the_reference_points(orl):
    detector, distances = FaceDetector(), []
    photographs = sorted(orl.glob("*/*/*_0001.jpg")) + sorted(orl.glob("*/*/*_0006.jpg"))
    assert len(photographs) == 80
    for path in photographs:
        image = read_image(path)
        landmarks = select_face(detector(image), image.size, "centre").landmarks
        matrix = similarity(landmarks, LANDMARKS)
        distances.append(landmarks @ matrix[:, :2].T + matrix[:, 2] - LANDMARKS)
    distances = np.array(distances)
    # On the mean face each landmark is in its place; a single face differs by its own shape.
    assert np.linalg.norm(distances.mean(0), axis=1).max() < 3
    assert np.linalg.norm(distances, axis=2).mean() < 3


@pytest.fixture
def photographs(orl, tmp_path):
    """A small folder in LFW's layout, of real faces."""
    folder = tmp_path / "photographs"
    for person in ("orl_s01", "orl_s02"):
        (folder / person).mkdir(parents=True)
        for number in (1, 2, 3):
            name = f"{person}_000{number}.jpg"
            shutil.copy(orl / "train" / person / name, folder / person / name)
    return folder


def read(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_every_kind_of_file_is_aligned_or_named(photographs, tmp_path):
    face = Image.open(photographs / "orl_s01" / "orl_s01_0001.jpg").convert("RGB")
    odd = photographs / "odd"
    odd.mkdir()
    face.convert("L").save(odd / "grey.jpg", quality=95)
    face.quantize(64).save(odd / "palette.png")
    face.convert("CMYK").save(odd / "cmyk.jpg", quality=95)
    face.convert("RGBA").save(odd / "alpha.PNG")
    Image.fromarray(np.asarray(face.convert("L")).astype(np.uint16) * 257).save(odd / "deep.tif")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown upright only by readers of EXIF
    face.rotate(90, expand=True).save(odd / "turned.jpg", exif=exif, quality=95)
    face.save(odd / "really_png.jpg", "PNG")
    face.resize((1840, 2240)).save(odd / "large.jpg")
    Image.new("RGB", (200, 200), (90, 120, 90)).save(odd / "nobody.jpg")
    Image.new("RGB", (5, 3)).save(odd / "tiny.png")
    (odd / "empty.jpg").touch()
    (odd / "text.jpg").write_text("not an image")
    whole = (photographs / "orl_s01" / "orl_s01_0002.jpg").read_bytes()
    (odd / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    bomb = Image.new("1", (20000, 20000))
    bomb.save(odd / "enormous.png")
    (odd / "notes.txt").write_text("a note")

    output = tmp_path / "aligned"
    report = align(AlignConfig(images=photographs, output=output))
    assert report["images"] == 6 + 14
    assert set(report["unreadable"]) == {
        f"odd/{name}.{end}"
        for name, end in [
            ("empty", "jpg"),
            ("text", "jpg"),
            ("truncated", "jpg"),
            ("enormous", "png"),
        ]
    }
    assert set(report["without_a_face"]) == {"odd/nobody.jpg", "odd/tiny.png"}
    assert report["not_images"] == ["odd/notes.txt"]
    assert report["aligned"] == 20 - 4 - 2
    assert json.loads((output / "align.json").read_text()) == report

    expected = read(output / "orl_s01" / "orl_s01_0001.jpg")
    assert expected.shape == (112, 96, 3)
    for name in ("grey.jpg", "cmyk.jpg", "alpha.PNG", "deep.png", "turned.jpg", "really_png.jpg"):
        assert np.abs(read(output / "odd" / name) - expected).mean() < 10, name
    assert np.abs(read(output / "odd" / "palette.png") - expected).mean() < 12
    assert np.abs(read(output / "odd" / "large.jpg") - expected).mean() < 25
    assert (output / "odd" / "nobody.jpg").exists()
    assert not list(output.rglob("*.writing"))


def test_fallback_skip_size_and_preview(photographs, tmp_path):
    Image.new("RGB", (200, 200)).save(photographs / "orl_s01" / "nobody.jpg")
    output, preview = tmp_path / "aligned", tmp_path / "sheet.png"
    config = AlignConfig(
        images=photographs, output=output, fallback="skip", size="112x112", preview=preview
    )
    assert align(config)["without_a_face"] == ["orl_s01/nobody.jpg"]
    assert not (output / "orl_s01" / "nobody.jpg").exists()
    assert read(output / "orl_s01" / "orl_s01_0001.jpg").shape == (112, 112, 3)
    assert Image.open(preview).size == (5 * (2 * 112 + 8), 2 * (112 + 8))


def test_a_killed_job_continues_where_it_stopped(orl, tmp_path):
    output = tmp_path / "aligned"
    for person in sorted((orl / "train").iterdir())[:9]:
        shutil.copytree(person, tmp_path / "photographs" / person.name)
    journal = output / "align.jsonl"
    config = AlignConfig(images=tmp_path / "photographs", output=output)
    with forked(align, config) as process:
        kill(process, lambda: journal.exists() and len(journal.read_text().splitlines()) > 10)
    with journal.open("a") as file:
        file.write('{"image": "orl_s01/orl')  # killed while it wrote
    done = {json.loads(line)["image"] for line in journal.read_text().splitlines()[1:-1]}
    assert 10 <= len(done) < 90
    times = {name: (output / name).stat().st_mtime_ns for name in done}

    (output / sorted(done)[0]).unlink()  # lost in between: made again
    report = align(config)
    assert (report["images"], report["aligned"]) == (90, 90)
    again = {name for name in done if (output / name).stat().st_mtime_ns != times[name]}
    assert again == {sorted(done)[0]}
    assert len(list(output.glob("*/*.jpg"))) == 90


def test_workers_give_the_same_faces(photographs, tmp_path):
    for workers in (0, 2):
        align(AlignConfig(images=photographs, output=tmp_path / str(workers), workers=workers))
    files = sorted(path.relative_to(tmp_path / "0") for path in (tmp_path / "0").rglob("*.*"))
    assert len(files) == 6 + 2
    for file in files:
        assert (tmp_path / "0" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


@pytest.mark.parametrize("problem", ["missing", "empty", "inside", "settings", "clash"])
def test_user_errors_are_named(photographs, tmp_path, problem):
    images, output, message = photographs, tmp_path / "aligned", ""
    if problem == "missing":
        images, message = tmp_path / "nowhere", "expected a folder of photographs"
    elif problem == "empty":
        images = tmp_path / "empty"
        images.mkdir()
        message = "expected images"
    elif problem == "inside":
        output, message = photographs / "aligned", "outside"
    elif problem == "settings":
        align(AlignConfig(images=images, output=output, fallback="skip"))
        message = "other settings"
    else:
        Image.new("RGB", (9, 9)).save(photographs / "orl_s01" / "a.png")
        Image.new("RGB", (9, 9)).save(photographs / "orl_s01" / "a.bmp")
        message = "orl_s01/a.bmp, orl_s01/a.png"
    with pytest.raises((OSError, ValueError), match=re.escape(message)):
        align(AlignConfig(images=images, output=output))


def test_an_error_is_one_line_without_a_traceback(tmp_path):
    arguments = ("--images", tmp_path / "nowhere", "--output", tmp_path / "out")
    result = run_python("-m", "sphereface_plus.align", *arguments, status=2)
    assert "expected a folder of photographs" in result.stderr
    assert "Traceback" not in result.stderr
