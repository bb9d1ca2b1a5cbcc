"""``mhe-gan score`` on files, with an extractor that an installed package offers."""

import io
import json
import os
import shutil
import tarfile
import zipfile
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from mhe_core.training.run import RunError
from mhe_gan import extractors, sources
from mhe_gan.config import GANConfig
from mhe_gan.extractors import GROUP, describe_extractor, extractor_digest, load_extractor
from mhe_gan.features import FeatureSet
from mhe_gan.frechet import extrapolated_frechet
from mhe_gan.metrics import METRICS, Metric
from mhe_gan.score import ScoreCommandConfig, score
from mhe_gan.test import TestConfig
from mhe_gan.test import test as score_run
from mhe_gan.train import train
from mhe_gan.traps import Appearance, unlike
from PIL import Image
from support.distributions import write_distribution
from torch.nn.functional import interpolate

NAMES = ["inception_score", "fid", "kid", "precision", "recall", "density", "coverage"]

CODE = """
import torch
from mhe_gan.metrics import Metric

class Colours(torch.nn.Module):
    def forward(self, images):
        x = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1) / 64
        return x, x

def offered():
    return Colours()

class Alone(Colours):
    def forward(self, images):
        return super().forward(images)[0]

def alone():
    return Alone()

brightness = Metric("brightness", True, "logits", lambda a, b: float(a.features.mean()))
wrong = 3
"""


@pytest.fixture(autouse=True)
def colours(tmp_path, monkeypatch):
    """A distribution with an extractor and a metric."""
    targets = {
        "mhe_gan.feature_extractors": [
            ("colours", "colours:offered"),
            ("alone", "colours:alone"),
        ],
        "mhe_gan.metrics": [("brightness", "colours:brightness"), ("wrong", "colours:wrong")],
    }
    site = write_distribution(tmp_path / "site", "colours", targets, {"colours.py": CODE})
    monkeypatch.syspath_prepend(str(site))


def pixels(count, seed=0, shift=0, size=16, cells=7):
    """Smooth images with some noise, uint8 [count, size, size, 3]."""
    rng = np.random.RandomState(seed)
    coarse = torch.from_numpy(rng.uniform(40, 180, (count, 3, cells, cells)))
    smooth = interpolate(coarse, (size, size), mode="bilinear").numpy()
    fine = smooth + rng.randint(0, 9, smooth.shape)
    return (fine + shift).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def write(folder, images, suffix=".png", **options):
    for number, image in enumerate(images):
        file = folder / f"{number % 3}" / f"{number:03d}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file, **options)
    return folder


def run(images, reference=None, **settings):
    settings = {"feature_extractor": "colours", "device": "cpu", "resamples": 20, **settings}
    reference = None if reference is None else str(reference)
    return score(ScoreCommandConfig(images=str(images), reference=reference, **settings))


@pytest.fixture
def folders(tmp_path):
    return write(tmp_path / "a", pixels(60)), write(tmp_path / "b", pixels(60, 1, 20))


def test_command_prints_every_score_with_interval_and_number(folders, command):
    common = ("--reference", folders[1], "--feature-extractor", "colours", "--device", "cpu")
    printed = json.loads(command("mhe-gan", "score", folders[0], *common, "--json").stdout)
    assert [*printed][:7] == NAMES
    for name in NAMES:
        found = printed[name]
        assert found["low"] <= found["value"] <= found["high"]
        assert (found["num_images"], found["num_reference"]) == (60, 60)
    table = command("mhe-gan", "score", folders[0], *common).stdout
    assert "60 images against 60, colours" in table
    assert f"{printed['fid']['value']:.4f}" in table


def test_folder_npz_and_statistics_of_the_same_images_score_alike(folders, tmp_path):
    np.savez(tmp_path / "last.npz", pixels(60))
    np.savez(tmp_path / "first.npz", images=pixels(60).transpose(0, 3, 1, 2))
    expected = run(*folders, save_statistics=tmp_path / "kept.npz")
    for file in ("last.npz", "first.npz", "kept.npz"):
        found = run(tmp_path / file, folders[1])
        assert found.scores.keys() == expected.scores.keys()
        for name in NAMES[1:]:
            value = found.scores[name].value
            assert value == pytest.approx(expected.scores[name].value, rel=1e-5, abs=1e-6)


def test_grey_images_of_an_npz_are_read_as_colour(tmp_path):
    grey = pixels(60)[..., 0]
    for images in (grey, grey[..., None], grey[:, None]):
        np.savez(tmp_path / "grey.npz", images)
        source = sources.open_source(str(tmp_path / "grey.npz"), batch_size=25)
        read = torch.cat(list(source.batches()))
        assert torch.equal(read, torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1))
        assert run(tmp_path / "grey.npz").num_images == 60


def test_intervals_end_where_the_score_does(folders):
    for reference in folders:  # the same images, and others
        found = run(folders[0], reference, resamples=5).scores
        for name, one in found.items():
            low, high = METRICS[name].bounds
            assert one.low >= low - 1e-6
            assert one.high <= high + 1e-6
            assert one.low <= one.value <= one.high
    assert found["precision"].high <= 1
    same = run(folders[0], folders[0], resamples=5).scores
    assert (same["precision"].value, same["precision"].high) == (1, 1)
    assert same["fid"].low >= -1e-6


def test_without_a_reference_one_line_says_what_is_left_out(folders):
    names = ", ".join(NAMES[1:])
    first, few = run(folders[0]).notes
    assert first == f"no {names}: there are no real images to compare with"
    assert few.startswith("6 images in each of ten splits")


def test_statistics_of_another_program_give_fid_alone(folders, tmp_path):
    run(folders[1], save_statistics=tmp_path / "kept.npz")
    with np.load(tmp_path / "kept.npz") as kept:
        np.savez(tmp_path / "theirs.npz", mu=kept["mu"], sigma=kept["sigma"])
    found = run(folders[0], tmp_path / "theirs.npz", unequal=True)
    assert found.scores["fid"].value == pytest.approx(run(*folders).scores["fid"].value)
    assert found.num_reference is None
    assert [name for name in NAMES if name not in found.scores] == NAMES[2:]
    assert any("no kid, precision" in note for note in found.notes)
    assert any("do not say what they are features of" in note for note in found.notes)


def test_samples_of_a_run_are_scored(trained, folders):
    found = run(trained, num_samples=60)
    assert found.num_images == 60
    assert list(found.scores) == ["inception_score"]
    assert run(trained, folders[0], num_samples=60).scores.keys() == set(NAMES)


def test_unequal_numbers_are_refused_unless_asked_for(folders, tmp_path):
    few = write(tmp_path / "few", pixels(40, 2))
    with pytest.raises(ValueError, match=r"60 and 40.*--num-samples 40.*--unequal"):
        run(folders[0], few)
    assert run(folders[0], few, unequal=True).num_reference == 40
    equal = run(folders[0], few, num_samples=40)
    assert (equal.num_images, equal.num_reference) == (40, 40)
    assert equal == run(folders[0], few, num_samples=40)  # which ones is for the seed to say
    assert equal.scores != run(folders[0], few, num_samples=40, seed=1).scores


def test_an_asked_for_metric_that_cannot_be_measured_is_an_error(folders):
    with pytest.raises(ValueError, match="cannot measure fid: there are no real images"):
        run(folders[0], metrics="fid")
    assert any(note.startswith("no fid") for note in run(folders[0]).notes)


def test_a_third_partys_metric_is_measured(folders):
    found = run(*folders, metrics="brightness,fid").scores
    assert list(found) == ["brightness", "fid"]
    assert found["brightness"].low is None
    with pytest.raises(
        ValueError, match=r"\(colours:wrong\): expected it to be a mhe_gan\.metrics"
    ):
        run(*folders, metrics="wrong")


def test_every_metric_says_which_way_is_better():
    assert {name for name, metric in METRICS.items() if not metric.higher_is_better} == {
        "fid",
        "kid",
    }
    assert all(isinstance(metric, Metric) for metric in METRICS.values())


def test_statistics_of_another_extractor_are_refused(folders, tmp_path):
    run(folders[0], save_statistics=tmp_path / "a.npz")
    with pytest.raises(ValueError, match="statistics of InceptionV3, got those of colours"):
        run(tmp_path / "a.npz", feature_extractor=None)


def test_unbiased_fid_comes_with_its_interval(tmp_path):
    np.savez(tmp_path / "a.npz", pixels(200, 1))
    np.savez(tmp_path / "b.npz", pixels(200, 2))
    found = run(tmp_path / "a.npz", tmp_path / "b.npz", unbiased=True).scores
    unbiased = found["fid_unbiased"]
    assert unbiased.value < found["fid"].value
    assert unbiased.low < unbiased.value < unbiased.high


def test_few_images_for_the_dimensions_are_pointed_out(folders):
    assert any("12 dimensions" in note for note in run(*folders, num_samples=10).notes)
    assert not any("dimensions" in note for note in run(*folders).notes)


def appearance(images, formats=()):
    found = Appearance()
    found.formats.update(formats)
    list(found.watch([torch.from_numpy(images).permute(0, 3, 1, 2)]))
    return found


def test_halves_of_one_set_are_not_pointed_out():
    assert unlike(appearance(pixels(200, 1, size=32)), appearance(pixels(200, 2, size=32))) == []


def test_resized_and_compressed_sides_are_pointed_out(tmp_path):
    faces = pixels(100, 1, size=32, cells=20)
    small = [Image.fromarray(image).resize((20, 20)) for image in faces]
    again = np.stack([np.asarray(image.resize((32, 32))) for image in small])
    notes = unlike(appearance(again), appearance(faces))
    assert any("one side is smoother" in note for note in notes)
    (sizes, *_) = unlike(appearance(faces[:, :20, :20]), appearance(faces))
    assert "sizes differ (20×20; reference 32×32)" in sizes
    jpeg = write(tmp_path / "jpeg", faces, ".jpg", quality=80)
    png = write(tmp_path / "png", faces)
    notes = run(jpeg, png).notes
    assert any("JPEG on one side only (100% of the files; reference 0%)" in n for n in notes)


def test_grey_images_on_one_side_are_pointed_out():
    faces = pixels(40, 1, size=32)
    grey = np.repeat(faces[..., :1], 3, axis=3)
    (note,) = unlike(appearance(grey), appearance(faces))
    assert note == "grey images on one side only (100%; reference 0%)"
    assert unlike(appearance(grey), appearance(grey)) == []


def test_saved_statistics_know_what_their_images_looked_like(tmp_path):
    faces = pixels(100, 1, size=32, cells=20)
    small = [Image.fromarray(image).resize((20, 20)) for image in faces]
    again = np.stack([np.asarray(image.resize((32, 32))) for image in small])
    sides = {
        "png": write(tmp_path / "png", faces),
        "jpeg": write(tmp_path / "jpeg", faces, ".jpg", quality=60),
        "smooth": write(tmp_path / "smooth", again),
        "small": write(tmp_path / "small", faces[:, :20, :20]),
        "grey": write(tmp_path / "grey", np.repeat(faces[..., :1], 3, axis=3)),
    }

    def notes(*given, **settings):
        return run(*given, metrics="fid", **settings).notes

    for name, folder in sides.items():
        run(folder, save_statistics=tmp_path / f"{name}.npz")
        of_images = notes(folder, sides["png"])
        assert (of_images == []) == (name == "png")
        kept = tmp_path / f"{name}.npz", tmp_path / "png.npz"
        assert notes(*kept) == of_images
        assert notes(folder, kept[1]) == of_images
        assert notes(kept[0], sides["png"]) == of_images
        assert notes(*kept, num_samples=90) == of_images


def test_statistics_of_before_they_knew_are_read(folders, tmp_path):
    run(folders[0], save_statistics=tmp_path / "kept.npz")
    with np.load(tmp_path / "kept.npz") as kept:
        arrays = {name: kept[name] for name in kept.files if name != "appearance"}
    savez(tmp_path / "old.npz", **arrays)
    assert run(tmp_path / "old.npz", folders[1]).scores.keys() == set(NAMES)
    savez(tmp_path / "bad.npz", **arrays, appearance=np.array("{"))
    with pytest.raises(ValueError, match=r"cannot read what the images of .*bad\.npz looked like"):
        run(tmp_path / "bad.npz", folders[1])


@pytest.mark.parametrize("quality", [50, 75, 90])
def test_jpeg_shows_where_the_format_does_not(tmp_path, quality):
    faces = pixels(150, size=40)
    folder = write(tmp_path / "jpeg", faces, ".jpg", quality=quality)
    read = np.stack([np.asarray(Image.open(file)) for file in sorted(folder.rglob("*.jpg"))])
    (note,) = unlike(appearance(read), appearance(faces))
    assert note.startswith("one side went through JPEG, whatever its format is now")
    assert unlike(appearance(read[:75]), appearance(read[75:])) == []
    cropped = unlike(appearance(read[:, 4:, 4:]), appearance(faces[:, 4:, 4:]))
    assert not any("went through" in note for note in cropped)  # which the docstring says


def test_other_formats_with_losses_are_pointed_out_by_their_files(tmp_path):
    faces = pixels(60, size=32)
    webp = write(tmp_path / "webp", faces, ".webp", quality=80)
    png = write(tmp_path / "png", faces)
    notes = run(webp, png, metrics="fid").notes
    assert any(n.startswith("WebP on one side only (100% of the files; ref") for n in notes)
    assert run(png, png, metrics="fid").notes == []


@pytest.mark.parametrize("size", [36, 40, 64, 96])
def test_images_enlarged_by_repeating_pixels_are_pointed_out(size):
    faces = pixels(100, 1, size=32)

    def resized(method):
        images = [Image.fromarray(image).resize((size, size), method) for image in faces]
        return appearance(np.stack([np.asarray(image) for image in images]))

    notes = unlike(resized(Image.Resampling.NEAREST), resized(Image.Resampling.BICUBIC))
    assert any(note.startswith("one side was enlarged by repeating pixels") for note in notes)
    assert unlike(resized(Image.Resampling.NEAREST), resized(Image.Resampling.NEAREST)) == []
    assert resized(Image.Resampling.BICUBIC).repeated == 0
    assert appearance(np.full_like(faces, 255)).repeated == 0  # which is a plain background


def test_real_photographs_are_not_pointed_out():
    """CIFAR-10 as JPEG, which shows; smaller, as it does not; and drawings in black and white."""
    data = Path(os.environ.get("MHE_TEST_DATA", ""))
    if "MHE_TEST_DATA" not in os.environ or not (data / "cifar10-jpeg.tar.gz").exists():
        pytest.skip("MHE_TEST_DATA names no folder with cifar10-jpeg.tar.gz")
    photographs, drawings = (
        first_images(data / f"{name}.tar.gz", 300) for name in ("cifar10-jpeg", "omniglot")
    )
    for images, size in ((photographs, 32), (photographs, 24), (drawings, 105), (drawings, 32)):
        pixels_of = np.stack([np.asarray(image.resize((size, size))) for image in images])
        halves = appearance(pixels_of[::2]), appearance(pixels_of[1::2])
        assert unlike(*halves) == []
        jpeg = (images is photographs) and size == 32
        assert all((half.quantised > 0.8) if jpeg else (half.quantised < 0.2) for half in halves)


def first_images(archive, count):
    with tarfile.open(archive) as members:
        found = []
        for member in members:
            if member.isfile() and member.name.endswith((".jpg", ".png")):
                content = members.extractfile(member).read()
                found.append(Image.open(io.BytesIO(content)).convert("RGB"))
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "which is neither"),
        (lambda path: path.mkdir(), "expected images in"),
        (lambda path: path.write_text("text"), "expected an .npz of images or statistics"),
        (lambda path: savez(path, a=pixels(4), b=pixels(4)), "expected one array of images"),
        (lambda path: savez(path, a=np.asfortranarray(pixels(4))), "in C order"),
        (lambda path: savez(path, a=pixels(4)[:0]), "in C order"),
        (lambda path: savez(path, a=pixels(4) / 255), r"uint8.*got a float64 \[4, 16, 16, 3\]"),
        (lambda path: savez(path), "got nothing"),
        (lambda path: savez(path, a=pixels(1)[0]), r"got a uint8 \[16, 16, 3\]"),
        (lambda path: savez(path, features=np.full((40, 3), np.nan)), "finite numbers in features"),
        (lambda path: savez(path, features=np.eye(3), logits=np.eye(2)), r"logits \[2, 2\]"),
        (lambda path: savez(path, mu=np.array(["a"]), sigma=np.eye(1)), "floating-point numbers"),
        (lambda path: zipped(path, "picture.png"), "expected arrays in .*, got picture.png"),
        (lambda path: savez(path, features=np.ones(4)), r"got features \[4\]"),
        (lambda path: savez(path, a=pixels(4)), "at least 30 images"),
    ],
)
def test_what_cannot_be_scored_is_said(tmp_path, make, message):
    make(tmp_path / "it.npz")
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "it.npz", num_samples=30)


def test_a_run_or_images_are_compared_with_published_moments(folders, trained, tmp_path):
    run(folders[1], save_statistics=tmp_path / "kept.npz")
    with np.load(tmp_path / "kept.npz") as kept:
        np.savez(tmp_path / "theirs.npz", mu=kept["mu"], sigma=kept["sigma"])
    with pytest.raises(ValueError, match=r"cannot tell whether.*--num-samples.*--unequal"):
        run(trained, tmp_path / "theirs.npz", num_samples=60)
    found = run(trained, tmp_path / "theirs.npz", num_samples=60, unequal=True)
    expected = run(trained, folders[1], num_samples=60)
    assert found.scores["fid"].value == pytest.approx(expected.scores["fid"].value)


def test_few_images_are_scored_by_what_they_suffice_for(tmp_path):
    few = [write(tmp_path / str(seed), pixels(4, seed)) for seed in (0, 1)]
    found = run(*few)
    assert list(found.scores) == ["inception_score", "fid", "kid", "precision", "recall"]
    assert "no density, coverage: 6 images are wanted on each side, there are 4" in found.notes
    with pytest.raises(ValueError, match="coverage: 6 images are wanted"):
        run(*few, metrics="coverage")
    one = [write(tmp_path / f"one{seed}", pixels(1, seed)) for seed in (0, 1)]
    assert list(run(*one).scores) == ["inception_score"]


def test_neighbours_far_from_the_origin_are_found():
    """float32 has no digits left of distances of 1 at 5,000, unless the mean is taken off."""
    generator = torch.Generator().manual_seed(0)
    near = [torch.randn(200, 16, generator=generator) for _ in range(2)]
    for name in ("precision", "recall", "density", "coverage"):
        expected = METRICS[name].value(*map(FeatureSet, near))
        found = METRICS[name].value(*(FeatureSet(x + 5000) for x in near))
        assert found == pytest.approx(expected, abs=0.02)


def test_the_interval_of_the_unbiased_fid_does_not_depend_on_what_else_is_asked(tmp_path):
    for seed in (1, 2):
        np.savez(tmp_path / f"{seed}.npz", pixels(200, seed))
    sides = tmp_path / "1.npz", tmp_path / "2.npz"
    alone = run(*sides, unbiased=True, metrics="kid").scores["fid_unbiased"]
    assert run(*sides, unbiased=True).scores["fid_unbiased"] == alone
    none = run(*sides, unbiased=True, resamples=0).scores["fid_unbiased"]
    assert (none.value, none.low) == (alone.value, None)


@pytest.mark.parametrize(("d", "N"), [(32, 300), (64, 640)])
def test_the_unbiased_fid_is_about_the_true_one(d, N):
    """Of exact moments, one apart: from subsets of fewer images than 2 d it was 0.4 to 0.6."""
    real = FeatureSet(None, moments=(np.eye(d)[0], np.eye(d)))
    found = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        found.append(extrapolated_frechet(FeatureSet(torch.randn(N, d, generator=generator)), real))
    assert np.mean([value for value, _ in found]) == pytest.approx(1, abs=0.25)


def test_extractors_are_picked_among_distributions_with_and_without_a_path(tmp_path, monkeypatch):
    targets = {GROUP: [("colours", "tints:Tints"), ("of_a_file", "tints:of_a_file")]}
    code = "import torch\n\nclass Tints(torch.nn.Flatten):\n    pass\n"
    code += "\ndef of_a_file(path):\n    return Tints()\n"
    site = write_distribution(tmp_path / "tints", "tints", targets, {"tints.py": code})
    monkeypatch.syspath_prepend(str(site))
    with pytest.raises(ValueError, match=r"claimed by .*'colours:colours' or 'tints:colours'"):
        load_extractor("colours")
    assert type(load_extractor("tints:colours")).__name__ == "Tints"
    assert type(load_extractor("colours:colours")).__name__ == "Colours"
    assert type(load_extractor("of_a_file:some/path")).__name__ == "Tints"
    assert type(load_extractor("tints:of_a_file:some/path")).__name__ == "Tints"
    with pytest.raises(ValueError, match="expected a path for it, as of_a_file:PATH"):
        load_extractor("of_a_file")
    with pytest.raises(ValueError, match="it takes no path, got '/x'"):
        load_extractor("alone:/x")


def test_a_run_is_scored_by_features_alone(trained, tmp_path):
    run_of = tmp_path / "run"
    shutil.copytree(trained, run_of)
    settings = {"num_samples": 20, "feature_extractor": "alone", "device": "cpu"}
    report = score_run(TestConfig(run=run_of, **settings))
    assert report["real_inception_score"] is None
    assert "fid" in report["final"]
    assert "inception_score" not in report["final"]
    tiny = {"width": 0.0625, "batch_size": 8, "steps": 2, "score_every": 2, **settings}
    with pytest.raises(
        ValueError, match=r"class logits for inception_score.*--best-by, such as fid"
    ):
        train(GANConfig(output=tmp_path / "new", **tiny))
    assert train(GANConfig(output=tmp_path / "new", **tiny, best_by="fid"))["fid"] > 0


def test_inception_is_the_same_by_its_name_and_by_default(folders, classifiers, tmp_path):
    run(folders[0], feature_extractor=classifiers[0], save_statistics=tmp_path / "kept.npz")
    kept = FeatureSet.load(tmp_path / "kept.npz")
    for given in (None, "inception"):
        of_inception = replace(kept, extractor=describe_extractor(given), weights="digest")
        of_inception.save(tmp_path / "inception.npz")
        for asked in (None, "inception"):
            assert run(tmp_path / "inception.npz", feature_extractor=asked).num_images == 60


def test_statistics_are_those_of_the_same_weights(folders, classifiers, tmp_path):
    classifier = tmp_path / "classifier"
    shutil.copytree(classifiers[0], classifier)
    settings = {"feature_extractor": str(classifier)}
    run(folders[0], **settings, save_statistics=tmp_path / "kept.npz")
    again = run(tmp_path / "kept.npz", folders[0], feature_extractor=f"{classifier}/")
    assert again.scores["fid"].value == pytest.approx(0, abs=1e-4)
    shutil.rmtree(classifier)
    shutil.copytree(classifiers[1], classifier)
    with pytest.raises(ValueError, match="as it is now, got those of other weights"):
        run(tmp_path / "kept.npz", folders[0], **settings)


class TwoByTwo(torch.nn.Module):
    """In place of Inception, whose weights no test downloads: 12 features by one matrix."""

    def __init__(self, name, features, feature_extractor_weights_path=None):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.eye(12), requires_grad=False)
        if feature_extractor_weights_path is not None:
            self.load_state_dict(torch.load(feature_extractor_weights_path))

    def forward(self, images):
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1) / 64
        return pooled @ self.matrix, pooled


def test_weights_count_by_their_tensors_wherever_they_come_from(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(extractors, "FeatureExtractorInceptionV3", TwoByTwo)
    files = {name: tmp_path / f"{name}.pth" for name in ("same", "as_well", "other")}
    torch.save({"matrix": torch.eye(12)}, files["same"])
    torch.save({"matrix": torch.eye(12)}, files["as_well"], _use_new_zipfile_serialization=False)
    torch.save({"matrix": 2 * torch.eye(12)}, files["other"])
    downloaded = {"feature_extractor": None}
    kept = tmp_path / "kept.npz"
    run(folders[0], **downloaded, save_statistics=kept)
    for weights in (None, files["same"], files["as_well"]):
        run(kept, folders[1], **downloaded, weights=weights)
        run(kept, **downloaded, weights=weights)
    for sides in ([kept, folders[1]], [kept]):
        with pytest.raises(ValueError, match="as it is now, got those of other weights"):
            run(*sides, **downloaded, weights=files["other"])
    run(folders[1], **downloaded, weights=files["other"], save_statistics=tmp_path / "other.npz")
    monkeypatch.setattr(extractors, "FeatureExtractorInceptionV3", None)  # nothing is downloaded
    assert run(kept, kept, **downloaded).scores["precision"].value == 1
    with pytest.raises(ValueError, match="expected statistics of one extractor on both sides"):
        run(kept, tmp_path / "other.npz", **downloaded)


def test_extractors_are_told_apart_by_tensors_and_kind():
    def digest(module, name="it"):
        return extractor_digest(module, name)

    torch.manual_seed(0)
    linear = torch.nn.Linear(2, 3).requires_grad_(False)
    copy = torch.nn.Linear(2, 3)
    assert digest(linear) != digest(copy)
    copy.load_state_dict(linear.state_dict())
    assert digest(linear) == digest(copy) == digest(copy, "another name")
    assert digest(linear) != digest(copy.bfloat16())
    assert digest(torch.nn.Flatten(), "a") != digest(torch.nn.Flatten(), "b")
    assert digest(torch.nn.Flatten(), "a") != digest(torch.nn.Identity(), "a")


def zipped(path, name):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"no array")


def savez(path, **arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)


def test_an_npz_is_read_piece_by_piece(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", pixels(50))
    monkeypatch.setattr(np, "load", None)
    source = sources.open_source(str(tmp_path / "a.npz"), batch_size=8)
    batches = list(source.batches())
    assert max(map(len, batches)) == 8
    assert torch.equal(torch.cat(batches).permute(0, 2, 3, 1), torch.from_numpy(pixels(50)))


READERS = """
import torch

def read(run):
    return torch.nn.Flatten()

def nothing(run=None):
    return run
"""


def test_the_package_that_reads_a_classifiers_run_is_found_among_others(tmp_path, monkeypatch):
    """colours needs no path, and so is no reader of runs, whoever else is installed."""
    own = [entry for entry in entry_points(group=GROUP) if entry.name != "colours"]
    assert own, "mhe-classification is installed where these tests run"
    with pytest.raises(RunError, match=r"config\.yaml"):  # its message: it was asked
        load_extractor(tmp_path)
    targets = {GROUP: [("other", "readers:read"), ("nothing", "readers:nothing")]}
    site = write_distribution(tmp_path / "readers", "readers", targets, {"readers.py": READERS})
    monkeypatch.syspath_prepend(str(site))
    with pytest.raises(ValueError, match=r"expected one .* and .*other. of readers 1\.0"):
        load_extractor(tmp_path)
    assert isinstance(load_extractor(f"other:{tmp_path}"), torch.nn.Flatten)
    with pytest.raises(ValueError, match=r"'nothing' of readers 1\.0 .*expected a torch\.nn\.Mod"):
        load_extractor("nothing")
