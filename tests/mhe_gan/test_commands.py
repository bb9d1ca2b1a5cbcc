"""The commands beside train, on real runs: sample, test, compare."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from mhe_core.training.checkpoint import CheckpointError
from mhe_core.training.run import RunError
from mhe_gan.sample import (
    SampleConfig,
    draw_noise,
    interpolated_noise,
    load_generator,
    sample,
)
from PIL import Image
from support.forks import run_python
from support.programs import script
from support.runs import records


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier of digits, trained by the command of the other application."""
    path = tmp_path_factory.mktemp("classifier") / "run"
    arguments = ("train", "--output", path, "--width", "0.125", "--steps", "20", "--device", "cpu")
    run_python(script("mhe-classification"), *arguments)
    return path


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_sample_grid_and_single_images(trained, tmp_path, command):
    run_python(
        script("mhe-gan"),
        "sample",
        trained,
        "--num",
        9,
        "--seed",
        3,
        "--output",
        tmp_path / "grid.png",
    )
    command("mhe-gan", "sample", trained, "--num", 9, "--seed", 3, "--output", tmp_path / "single")
    grid = pixels(tmp_path / "grid.png")
    assert grid.shape == (3 * 34 + 2, 3 * 34 + 2, 3)
    files = sorted((tmp_path / "single").iterdir())
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(9)]
    for i, file in enumerate(files):
        row, column = divmod(i, 3)
        top, left = 34 * row + 2, 34 * column + 2
        assert np.array_equal(pixels(file), grid[top : top + 32, left : left + 32])
    command("mhe-gan", "sample", trained, "--seed", 0, "--output", tmp_path / "same.png")
    assert np.array_equal(
        pixels(tmp_path / "same.png"), pixels(trained / "samples" / "step000024.png")
    )


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".TIFF", ".webp", ".jpg", ".jpeg"])
def test_a_grid_is_of_the_format_that_its_name_says(trained, tmp_path, suffix):
    settings = {"run": trained, "num": 4, "average": False, "device": "cpu"}
    sample(SampleConfig(output=tmp_path / "grid.png", **settings))
    file = tmp_path / f"grid{suffix}"
    sample(SampleConfig(output=file, **settings))
    with Image.open(file) as image:
        written, found = image.format, np.asarray(image.convert("RGB")).astype(int)
    assert written == Image.registered_extensions()[suffix.lower()]
    difference = np.abs(found - pixels(tmp_path / "grid.png"))
    assert (difference.max() == 0) == (written != "JPEG")
    assert difference.mean() < 4


def test_where_no_samples_can_be_written(trained, tmp_path):
    def write(name):
        sample(SampleConfig(run=trained, output=tmp_path / name, num=2, device="cpu"))

    with pytest.raises(ValueError, match=r"ends with \.bmp, .*\.webp.*got .*grid\.gif"):
        write("grid.gif")
    write("folder.v2")
    before = {file.name: file.read_bytes() for file in (tmp_path / "folder.v2").iterdir()}
    assert sorted(before) == ["000000.png", "000001.png"]
    with pytest.raises(ValueError, match=r"expected a new or an empty folder.*folder\.v2 holds"):
        write("folder.v2")
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "folder.v2").iterdir()}
    (tmp_path / "file").write_text("text")
    with pytest.raises(ValueError, match=r"expected a folder.*file is a file"):
        write("file")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ValueError, match=r"expected a file.*folder\.jpg is a folder"):
        write("folder.jpg")


def test_sample_interpolates_between_two_noises(trained, tmp_path, command):
    arguments = ("--num", 10, "--interpolate", 5, "--output", tmp_path / "rows.png")
    command("mhe-gan", "sample", trained, *arguments)
    assert pixels(tmp_path / "rows.png").shape == (2 * 34 + 2, 5 * 34 + 2, 3)

    noise = interpolated_noise(10, 5, seed=4).view(2, 5, 128)
    ends = draw_noise(4, seed=4)
    torch.testing.assert_close(noise[:, 0], ends[:2])
    torch.testing.assert_close(noise[:, -1], ends[2:])
    lengths = noise.norm(dim=-1)
    between = (lengths[:, :1].minimum(lengths[:, -1:]), lengths[:, :1].maximum(lengths[:, -1:]))
    assert (lengths >= between[0] - 1e-4).all()
    assert (lengths <= between[1] + 1e-4).all()
    directions = noise / lengths[..., None]
    angles = torch.acos((directions[:, 1:] * directions[:, :-1]).sum(-1))
    torch.testing.assert_close(angles, angles[:, :1].expand(2, 4), atol=1e-3, rtol=0)


def test_average_and_raw_generators_differ(trained):
    noise = draw_noise(2, 0)
    average, _, step = load_generator(trained)
    raw, _, _ = load_generator(trained, average=False)
    assert step == 24
    assert not torch.allclose(average(noise), raw(noise))


def test_the_averages_batch_norms_fit_its_weights(trained):
    """In evaluation it does what it does to a large batch by that batch's own statistics."""
    generator, _, _ = load_generator(trained)
    noise = draw_noise(1000, 1)
    by_running_statistics = generator(noise)
    by_its_own = generator.train()(noise)
    assert (by_running_statistics - by_its_own).abs().mean() < 0.08 * by_its_own.std()


def test_what_is_no_run(trained, tmp_path, command):
    with pytest.raises(RunError, match="expected a run directory"):
        load_generator(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a checkpoint at"):
        load_generator(trained, "other")
    broken = tmp_path / "run"
    (broken / "checkpoints").mkdir(parents=True)
    (broken / "config.yaml").write_text((trained / "config.yaml").read_text())
    content = (trained / "checkpoints" / "last").read_bytes()
    (broken / "checkpoints" / "last").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load_generator(broken)
    done = command("mhe-gan", "sample", broken, "--output", tmp_path / "x.png", status=2)
    assert "truncated" in done.stderr
    assert "Traceback" not in done.stderr


def test_test_scores_the_final_generator_with_a_classifier(trained, classifier, command):
    arguments = ("--num-samples", 40, "--feature-extractor", classifier, "--reference", "test")
    done = run_python(script("mhe-gan"), "test", trained, *arguments)
    report = json.loads((trained / "test.json").read_text())
    assert json.loads(done.stdout) == report
    assert "best" not in report  # no score has chosen one
    assert report["final"]["step"] == 24
    assert 1 <= report["final"]["inception_score"] <= 10
    assert report["final"]["fid"] > 0
    assert report["reference"] == "360 test images"
    assert report["extractor"] == str(classifier)
    assert 1 < report["real_inception_score"] <= 10


def test_scores_while_it_trains_choose_the_best(trained, tmp_path, classifier, command):
    run = tmp_path / "run"
    command(
        "mhe-gan", "train", "--config", trained / "config.yaml", "--output", run,
        "--score-every", 9, "--best-by", "fid", "--num-samples", 30,
        "--feature-extractor", classifier,
    )  # fmt: skip
    fids = {record["step"]: record["fid"] for record in records(run) if "fid" in record}
    assert list(fids) == [9, 18, 24]  # records come at multiples of 5
    command("mhe-gan", "test", run, "--num-samples", 30, "--feature-extractor", classifier)
    report = json.loads((run / "test.json").read_text())
    assert report["best_chosen_by"] == "fid while it trained"
    best = min(fids, key=fids.get)
    assert report["best"]["step"] == best
    assert report["best"]["fid"] == pytest.approx(fids[best], rel=1e-4)
    assert report["final"]["fid"] == pytest.approx(fids[24], rel=1e-4)


def test_sampling_imports_nothing_that_scores():
    code = "import mhe_gan.sample, sys; print('torch_fidelity' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_compare_makes_a_table_samples_and_curves(tmp_path, classifier, command):
    arguments = (
        "compare", "--output", tmp_path / "compare", "--models", "baseline,mhe,mhe+sn",
        "--seeds", "0,1", "--steps", 6, "--log-every", 3, "--width", 0.0625, "--batch-size", 16,
        "--num-samples", 30, "--feature-extractor", classifier, "--device", "cpu",
    )  # fmt: skip
    done = run_python(script("mhe-gan"), *arguments)
    table = (tmp_path / "compare" / "table.md").read_text()
    assert table in done.stdout
    rows = json.loads((tmp_path / "compare" / "table.json").read_text())["methods"]
    assert list(rows) == ["baseline", "mhe", "mhe+sn"]
    for label, weight in (("mhe", 2e-6), ("mhe+sn", 2e-7)):
        assert len(rows[label]["runs"]) == 2
        config = (tmp_path / "compare" / label / "seed1" / "config.yaml").read_text()
        assert float(config.split("hidden_weight: ")[1].split()[0]) == weight
    assert rows["mhe"]["largest_singular_value"]["mean"] > 0
    with Image.open(tmp_path / "compare" / "samples.png") as picture:
        assert picture.width > 2.5 * picture.height
    assert (tmp_path / "compare" / "curves.png").exists()

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "compare").rglob("*.json")}
    again = command("mhe-gan", *arguments)
    assert table in again.stdout
    changed = {p.name for p, at in before.items() if p.stat().st_mtime_ns != at}
    assert changed == {"table.json"}  # complete runs are neither trained nor scored again

    command("mhe-gan", *arguments, "--models", "mhe", "--steps", 8, "--resume")
    (run, _) = json.loads((tmp_path / "compare" / "table.json").read_text())["methods"]["mhe"][
        "runs"
    ]
    assert (run["steps"], run["step"]) == (8, 8)  # and one that was trained on is scored again


def test_unknown_models_and_commands(command, tmp_path):
    done = command("mhe-gan", "compare", "--seeds", "0,a", status=2)
    assert "expected --seeds as numbers with commas between, got '0,a'" in done.stderr
    weight = ("--regularizer", "none", "--generator-weight", 5)
    done = command("mhe-gan", "train", "--output", tmp_path / "run", *weight, status=2)
    assert "expected a --regularizer with --generator-weight" in done.stderr
    many = ("--batch-size", 1024, "--n-dis", 5, "--width", 0.0625)
    done = command("mhe-gan", "train", "--output", tmp_path / "run", *many, status=2)
    assert "expected a batch size from 1 (processes) to" in done.stderr
    done = command("mhe-gan", "compare", "--models", "sn,wgan", status=2)
    assert "expected --models of baseline, sn, mhe, mhe+sn, got wgan" in done.stderr
    done = command(
        "mhe-gan", "sample", tmp_path, "--output", tmp_path / "x.png", "--num", 0, status=2
    )
    assert "expected --num and --batch-size above 0" in done.stderr
