"""After training: packs tested, embeddings written and evaluated, photographs compared, exports."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mhe_core.training.augment import normalize
from mhe_core.training.images import DataError
from PIL import Image
from sphereface_plus import FaceVerifier
from sphereface_plus.config import FaceConfig
from sphereface_plus.draw import main as pairs_main
from sphereface_plus.embed import main as embed_main
from sphereface_plus.embedding import load_run
from sphereface_plus.evaluate import EvaluateConfig, best_accuracy, evaluate
from sphereface_plus.evaluate import main as evaluate_main
from sphereface_plus.export import ExportConfig, export
from sphereface_plus.packs import RecordPack
from sphereface_plus.pair_files import read_pairs
from sphereface_plus.pairs import find_pairs, pack_pairs
from sphereface_plus.test import TestConfig
from sphereface_plus.test import main as verify_packs
from sphereface_plus.train import train
from sphereface_plus.uncertainty import bootstrap_interval, people_of
from sphereface_plus.verify import main as verify_main

PACKS = Path(__file__).parent / "vectors" / "packs"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny network, trained for a moment on a pack."""
    folder = tmp_path_factory.mktemp("use") / "run"
    settings = {"model": "sfnet4", "width": 0.1, "dim": 8, "lr": 0.02, "steps": 3, "batch_size": 8}
    train(FaceConfig(output=folder, data=str(PACKS / "face"), image_size="28x28", **settings))
    return folder


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """The first pack's images as a folder in LFW's layout."""
    root = tmp_path_factory.mktemp("faces")
    pack = RecordPack(PACKS / "face")
    for i in range(len(pack)):
        name = f"p{int(pack.labels[i])}"
        file = root / name / f"{name}_{i % 5 + 1:04d}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(pack.encoded(i))
    return root


@torch.no_grad()
def summed(run, images):
    backbone = load_run(run)[0].backbone
    x = normalize(torch.stack(images))
    return (backbone(x) + backbone(x.flip(-1))).numpy()


def test_packs_are_tested_in_one_table(run, tmp_path, capsys):
    small = PACKS / "bin_variants" / "py3_proto5.bin"
    arguments = [str(run), "--pack", str(PACKS / "orl.bin"), str(small)]
    arguments += ["--protocol", "insightface", "--fpr", "0.01", "0.1", "--output", str(tmp_path)]
    verify_packs(arguments)
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")] for line in printed.splitlines()]
    assert [row[1:3] for row in rows if len(row) > 2][2:] == [["orl", "60"], ["py3_proto5", "3"]]
    report = json.loads((tmp_path / "orl" / "report.json").read_text())
    assert (report["pairs"], report["images"], len(report["fold_accuracy"])) == (60, 120, 10)
    assert report["accuracy_std"] == pytest.approx(np.std(report["fold_accuracy"]))
    assert set(report["tpr_at_fpr"]) == {"0.01", "0.1"}
    low, high = report["accuracy_interval"]
    assert low < report["accuracy"] < high
    with (tmp_path / "orl" / "scores.csv").open() as file:
        scores = list(csv.DictReader(file))
    assert len(scores) == 60
    accuracy = np.mean([int(score["right"]) for score in scores])
    assert accuracy == pytest.approx(report["accuracy"])
    threshold = report["threshold_at_fpr"]["0.1"]
    passed = [float(score["score"]) >= threshold - 1e-6 for score in scores if score["same"] == "1"]
    assert np.mean(passed) == pytest.approx(report["tpr_at_fpr"]["0.1"])


def test_a_pack_with_images_or_of_one_name_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--pack, or --images and --pairs"):
        TestConfig(run=tmp_path, pack=[Path("a.bin")], images=tmp_path, pairs=tmp_path)
    with pytest.raises(ValueError, match="different names"):
        TestConfig(run=tmp_path, pack=[Path("x/a.bin"), Path("y/a.bin")])
    with pytest.raises(ValueError, match="--fpr between 0 and 1, got 2"):
        TestConfig(run=tmp_path, fpr=[2.0])


def test_embeddings_of_a_folder_and_of_packs(run, faces, tmp_path, capsys):
    output = tmp_path / "faces.npz"
    embed_main([str(run), "--images", str(faces), "--output", str(output), "--batch-size", "7"])
    assert f"60 embeddings in {output}" in capsys.readouterr().out
    content = np.load(output)
    assert content["embeddings"].dtype == np.float32
    files = sorted(faces.rglob("*.jpg"))
    assert sorted(content["names"]) == [path.relative_to(faces).as_posix() for path in files]
    names = content["names"].tolist()
    images = find_pairs(read_pairs_of(faces, tmp_path), faces, (28, 28)).images
    place = names.index("p3/p3_0002.jpg")
    file = next(i for i, path in enumerate(images.files) if path.name == "p3_0002.jpg")
    pixels, _ = images.__getitems__([file])
    np.testing.assert_allclose(content["embeddings"][place], summed(run, [*pixels])[0], atol=1e-5)

    embed_main(
        [str(run), "--images", str(PACKS / "orl.bin"), "--output", str(tmp_path / "orl.npz")]
    )
    embed_main([str(run), "--images", str(PACKS / "face"), "--output", str(tmp_path / "rec.npz"),
                "--mirror", "none"])  # fmt: skip
    assert np.load(tmp_path / "orl.npz")["embeddings"].shape == (120, 8)
    assert np.load(tmp_path / "rec.npz")["names"].tolist() == [str(key) for key in range(1, 61)]


def read_pairs_of(faces, tmp_path):
    file = tmp_path / "pairs.txt"
    pairs_main(["--images", str(faces), "--output", str(file), "--folds=5", "--per-fold=4"])
    return read_pairs(file)


def test_drawn_pairs_are_written_as_lfws_or_as_lines(faces, tmp_path, capsys):
    pairs = read_pairs_of(faces, tmp_path)
    assert "20 pairs of one person and 20 of two in 5 folds" in capsys.readouterr().out
    assert (tmp_path / "pairs.txt").read_text().startswith("5\t4\n")
    assert sum(pair.same for pair in pairs) == 20
    for pair in pairs:
        assert (pair.first.split("/")[0] == pair.second.split("/")[0]) == pair.same
    assert len(find_pairs(pairs, faces)) == 40
    (faces / "p0" / "p0_0001.jpg").rename(faces / "p0" / "first.jpg")
    every = read_pairs_of(faces, tmp_path)
    (faces / "p0" / "first.jpg").rename(faces / "p0" / "p0_0001.jpg")
    assert every[0].first.endswith(".jpg")
    assert sum(pair.same for pair in every) == 20


def test_anybodys_embeddings_under_every_protocol(run, faces, tmp_path, capsys):
    orl = str(PACKS / "orl.bin")
    for mirror, name in (("sum", "insightface"), ("concatenate", "sphereface")):
        output = tmp_path / f"{mirror}.npz"
        embed_main([str(run), "--images", orl, "--output", str(output), "--mirror", mirror])
        found = evaluate(EvaluateConfig(embeddings=output, pack=Path(orl)))
        verify_packs([str(run), "--pack", orl, "--protocol", name, "--output", str(tmp_path)])
        report = json.loads((tmp_path / "orl" / "report.json").read_text())
        assert found[name]["accuracy"] == pytest.approx(report["accuracy"], abs=0.02)
    assert found["best_threshold"]["accuracy"] >= found["distance"]["accuracy"]
    np.save(tmp_path / "e.npy", np.load(tmp_path / "sum.npz")["embeddings"])
    (tmp_path / "names.txt").write_text("\n".join(f"{i}.jpg" for i in range(120)))
    lines = [f"{2 * i}.jpg {2 * i + 1} {int(i % 6 < 3)}" for i in range(60)]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    arguments = ["--embeddings", str(tmp_path / "e.npy"), "--names", str(tmp_path / "names.txt")]
    capsys.readouterr()
    evaluate_main([*arguments, "--pairs", str(tmp_path / "pairs.txt")])
    printed = capsys.readouterr().out
    assert "no protocol, always too high" in printed
    assert "TAR at FAR 0.001, rule strict" in printed
    (tmp_path / "pairs.txt").write_text("0.jpg 7000.jpg 1\n0 1 0")
    with pytest.raises(DataError, match=r"an embedding of 7000\.jpg"):
        evaluate_main([*arguments, "--pairs", str(tmp_path / "pairs.txt")])


@pytest.fixture
def ijb(tmp_path):
    """What the published programs were given and found, and the flags of the files they read."""
    ijb = np.load(Path(__file__).parent / "vectors" / "protocols" / "ijb.npz")
    names = [f"{i}.jpg" for i in range(len(ijb["in/emb"]))]
    embeddings = ijb["in/emb"] + ijb["in/emb_flip"]
    np.savez(tmp_path / "e.npz", embeddings=embeddings, names=names)
    rows = zip(names, ijb["in/template"], ijb["in/media"], strict=True)
    (tmp_path / "tid.txt").write_text("\n".join(" ".join(map(str, row)) for row in rows))
    scores = zip(names, ijb["in/score"].astype(float), strict=True)
    (tmp_path / "score.txt").write_text("\n".join(f"{n} {'0 ' * 10}{s}" for n, s in scores))
    (tmp_path / "pairs.txt").write_text("\n".join(" ".join(map(str, p)) for p in ijb["in/pairs"]))
    for name in ("probe", "gallery1", "gallery2"):
        lines = [f"{template},{person},img/1.jpg" for template, person in ijb[f"in/{name}"]]
        lines = ["TEMPLATE_ID,SUBJECT_ID,FILENAME", *lines, lines[0]]  # a line an image
        (tmp_path / f"{name}.csv").write_text("\r\n".join(lines))
    files = {"embeddings": "e.npz", "templates": "tid.txt", "scores": "score.txt"}
    arguments = [part for flag, file in files.items() for part in (f"--{flag}", tmp_path / file)]
    return ijb, list(map(str, arguments)), tmp_path


def evaluated(ijb, *arguments):
    """The figures that the command writes."""
    _, shared, folder = ijb
    evaluate_main([*shared, *map(str, arguments), "--output", str(folder / "found.json")])
    return json.loads((folder / "found.json").read_text())


def test_templates_of_anybodys_embeddings(ijb):
    published, _, folder = ijb
    found = evaluated(ijb, "--pairs", folder / "pairs.txt")
    tars = list(found["curve"]["tar_at_far"]["insightface"].values())
    np.testing.assert_allclose(tars, published["ijb11/N1D1F1/tar"], atol=1e-12)


def test_probes_are_identified_by_the_published_rules(ijb, capsys):
    published, _, folder = ijb
    galleries = [folder / "gallery1.csv", folder / "gallery2.csv"]
    found = evaluated(ijb, "--probe", folder / "probe.csv", "--gallery", *galleries)
    closed, opened = found["closed_set"], found["open_set"]
    np.testing.assert_allclose(
        list(closed["rank"].values()), published["ijb1n_single/top1_5_10"], atol=1e-12
    )
    for fpir, tpir, _ in published["ijb1n_single/far_tpir_threshold"]:
        assert closed["tpir_at_fpir"][f"{fpir:g}"] == pytest.approx(tpir, abs=1e-9)
    np.testing.assert_allclose(
        list(opened["tpir_at_fpir"].values()),
        np.mean([published[f"ijb1n_open/G{i}/tpir_at_1e-3_1e-2_1e-1_1"] for i in (1, 2)], axis=0),
        atol=1e-12,
    )
    hits = sum(published[f"ijb1n_open/G{i}/top_counts"] for i in (1, 2))
    assert opened["mated"] == len(published["in/probe"])
    np.testing.assert_allclose(list(opened["rank"].values()), hits / opened["mated"], atol=1e-12)
    printed = capsys.readouterr().out
    assert f"| rank 1, closed set | {100 * closed['rank']['1']:.2f} |" in printed
    assert f"| TPIR at FPIR 0.01, open set | {100 * opened['tpir_at_fpir']['0.01']:.2f}" in printed
    alone = evaluated(ijb, "--probe", folder / "probe.csv", "--gallery", galleries[0])
    assert "closed_set" not in alone
    assert alone["open_set"]["tpir_at_fpir"]["0.01"] == pytest.approx(
        float(published["ijb1n_open/G1/tpir_at_1e-3_1e-2_1e-1_1"][1]), abs=1e-12
    )


@pytest.mark.parametrize("score", ["x", "nan"])
def test_a_score_that_is_no_number_is_named_by_its_line(ijb, score):
    _, _, folder = ijb
    scores = (folder / "score.txt").read_text().splitlines()
    scores[1] = f"{scores[1].rpartition(' ')[0]} {score}"
    (folder / "score.txt").write_text("\n".join(scores))
    with pytest.raises(DataError, match=rf"score\.txt:2: expected a finite number, got '{score}'"):
        evaluated(ijb, "--pairs", folder / "pairs.txt")


def test_what_is_wrong_with_lists_of_templates_is_named(ijb, capsys):
    _, _, folder = ijb
    probe, gallery = folder / "probe.csv", folder / "gallery1.csv"
    nobody = folder / "nobody.csv"
    first = probe.read_text().splitlines()[1]
    template, person, _ = first.split(",")
    for text, message in (
        ("template,subject", "got names alone"),
        (
            f"{template},1\n{template},2",
            f"nobody.csv:2: expected template {template} of one person",
        ),
        (f"{template},x", "nobody.csv:1: expected a whole number, got 'x'"),
        (f"{template}", "nobody.csv:1: expected 2 values or more"),
        ("987654,1", "expected images of template 987654, got none"),
        (f"{template},987654", "expected each person of .* in a gallery, or in each gallery some"),
    ):
        nobody.write_text(text)
        with pytest.raises(DataError, match=message):
            evaluated(ijb, "--probe", nobody, "--gallery", gallery)
    templates = [line.split(",")[0] for line in gallery.read_text().splitlines()[1:3]]
    nobody.write_text("\n".join(f"{one},{person}" for one in templates))
    with pytest.raises(DataError, match=r"one template of each person in .*, got 2 of 1 persons"):
        evaluated(ijb, "--probe", probe, "--gallery", nobody)
    for arguments, message in (
        (("--probe", probe), "--probe and --gallery together"),
        (("--gallery", gallery, "--pairs", probe), "--probe and --gallery together"),
        ((), "expected --pairs or --pack or, with --templates, --probe"),
    ):
        with pytest.raises(SystemExit):
            evaluated(ijb, *arguments)
        assert message in capsys.readouterr().err


def test_the_best_threshold_of_the_pairs_themselves():
    scores = np.array([0.9, 0.8, 0.8, 0.1])
    assert best_accuracy(scores, np.array([True, True, False, False])) == 0.75
    assert best_accuracy(scores, np.array([True, False, False, False])) == 1
    assert best_accuracy(-scores, np.array([True, True, False, True])) == 0.75


def test_two_photographs_are_compared(run, faces, tmp_path, capsys):
    first, second = faces / "p1" / "p1_0001.jpg", faces / "p1" / "p1_0002.jpg"
    verifier = FaceVerifier.load(run, align=False)
    assert verifier.compare(first, second).same is None
    pixels = [
        torch.from_numpy(np.array(Image.open(file).resize((28, 28), 2))).permute(2, 0, 1)
        for file in (first, second)
    ]
    a, b = summed(run, pixels)
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert verifier.compare(first, Image.open(second)).score == pytest.approx(expected, abs=1e-4)
    assert verifier.compare(first, first).score == pytest.approx(1, abs=1e-5)

    report = tmp_path / "report.json"
    report.write_text(json.dumps({"cosine_at_fpr": {"0.001": 0.9999999, "0.01": -1.0}}))
    arguments = [str(run), str(first), str(second), "--report", str(report), "--no-align"]
    verify_main([*arguments, "--fpr", "0.01"])
    assert "same person at a false positive rate of 0.01" in capsys.readouterr().out
    verify_main(arguments)
    assert "different persons at a false positive rate of 0.001" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"one of the measured 0.001, 0.01, got 0.5"):
        verify_main([*arguments, "--fpr", "0.5"])


def test_a_photograph_is_aligned_first_and_one_without_a_face_is_named(run, orl, tmp_path):
    verifier = FaceVerifier.load(run)
    photographs = sorted((orl / "train" / "orl_s01").iterdir())[:2]
    assert -1 <= verifier.compare(*photographs).score <= 1
    Image.new("RGB", (60, 60), "grey").save(tmp_path / "grey.png")
    with pytest.raises(DataError, match=r"a face in .*grey\.png, found none"):
        verifier.compare(photographs[0], tmp_path / "grey.png")


@pytest.mark.parametrize("form", ["safetensors", "torchscript", "onnx"])
def test_an_export_computes_what_was_trained(run, tmp_path, form):
    if form == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    found = export(ExportConfig(run=run, format=form, output=tmp_path / "model"))
    assert 0 <= found["largest_difference"] < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    if form == "onnx":
        # The network alone, by a program that knows nothing of this project.
        figures = evaluate(EvaluateConfig(onnx=tmp_path / "model", pack=PACKS / "orl.bin"))
        assert 0 <= figures["insightface"]["accuracy"] <= 1


def test_people_are_drawn_again_for_the_interval():
    rng = np.random.default_rng(0)
    pairs = pack_pairs(PACKS / "orl.bin")
    first, second = people_of(pairs.left, pairs.right, pairs.same)
    assert (first[pairs.same] == second[pairs.same]).all()
    assert (first[~pairs.same] != second[~pairs.same]).all()
    # Pairs of their own people, all of one kind: the interval is the binomial one.
    right = rng.random(400) < 0.8
    people = np.arange(400)
    low, high = bootstrap_interval(right, (people, people), np.ones(400, bool), (True,))
    width = 2 * 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert high - low == pytest.approx(width, rel=0.1)
    assert low < right.mean() < high
    # One person in every pair: drawn or not, all pairs count alike.
    assert bootstrap_interval(right, (0 * people, 0 * people), np.ones(400, bool), (True,)) == (
        pytest.approx(right.mean()), pytest.approx(right.mean())
    )  # fmt: skip
