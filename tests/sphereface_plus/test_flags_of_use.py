"""Every flag of the commands beside train and compare changes what comes of it, or must not."""

import json
import shutil

import numpy as np
import pytest
from mhe_core.errors import UserError
from safetensors.torch import load_file
from sphereface_plus.align import AlignConfig, align
from sphereface_plus.config import FaceConfig
from sphereface_plus.draw import DrawConfig, draw
from sphereface_plus.embed import EmbedConfig, embed_images
from sphereface_plus.evaluate import EvaluateConfig, evaluate
from sphereface_plus.export import ExportConfig, export
from sphereface_plus.test import TestConfig
from sphereface_plus.test import test as verify
from sphereface_plus.train import train
from sphereface_plus.verify import VerifyConfig, verify_photographs
from support.images import noise_folder
from support.wiring import (
    USE,
    Changes,
    Same,
    check_flag,
    check_no_entry_is_left_over,
    figures,
    flags,
)

TINY = {"model": "sfnet4", "width": 0.1, "dim": 8, "batch_size": 8, "steps": 1, "device": "cpu"}
TINY |= {"image_size": "16x16", "lr": 0.02}

PAIRS = "2\t1\na\t1\t2\na\t1\tb\t1\nb\t1\t2\na\t2\tb\t2\n"
OTHER_PAIRS = "2\t1\na\t3\t4\na\t3\tb\t4\nb\t3\t4\na\t4\tb\t3\n"
MISSING = PAIRS.replace("b\t1\t2\n", "b\t1\t9\n")
DOWNLOADED = Same("a network that is downloaded")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two runs, the first with a checkpoint of the second's, faces, pairs and embeddings."""
    folder = tmp_path_factory.mktemp("place")
    for seed in (0, 1):
        train(FaceConfig(output=folder / f"run{seed}", seed=seed, **TINY))
    shutil.copy(folder / "run1/checkpoints/last", folder / "run0/checkpoints/other")
    for seed, name in enumerate(("faces", "others")):
        noise_folder(folder / name, size=16, start=1, seed=seed)
    for name, lines in (("pairs", PAIRS), ("other", OTHER_PAIRS), ("missing", MISSING)):
        (folder / f"{name}.txt").write_text(lines)
    names = sorted(f"{name}/{name}_{i:04d}.png" for name in "ab" for i in range(1, 9))
    for seed, file in enumerate(("rows", "others")):
        rows = np.random.default_rng(seed).normal(size=(len(names), 4)).astype(np.float32)
        np.savez(folder / f"{file}.npz", embeddings=rows, names=np.array(names))
    (folder / "renamed.txt").write_text("\n".join(reversed(names)) + "\n")
    for value in (0.1, 0.2):
        levels = {"0.001": value, "0.01": -value}
        (folder / f"report{value}.json").write_text(json.dumps({"cosine_at_fpr": levels}))
    return folder


known = {}


def check(config_class, name, entries, outcome, base):
    """The flag's entry, and that there is none too many; nothing is computed twice."""

    def remembered(settings):
        key = config_class, repr(sorted(settings.items()))
        if key not in known:
            known[key] = outcome(settings)
        return known[key]

    check_flag(config_class, name, entries, remembered, base)
    check_no_entry_is_left_over(config_class, entries)


@pytest.mark.parametrize("name", flags(TestConfig))
def test_every_flag_of_test(name, place):
    entries = USE | {
        "run": Changes(place / "run1", what="figures"),
        "embedder": DOWNLOADED,
        "weights": DOWNLOADED,
        "images": Changes(place / "others/test", what="figures"),
        "pairs": Changes(place / "other.txt", what="figures"),
        "pack": Same("packs are tested in test_use.py"),
        "fpr": Changes([0.4], what="figures"),
        "align": Changes(True, what="figures"),
        "size": Changes(given={"align": True}, what="aligned"),
        "protocol": Changes(what="figures"),
        "missing": Changes("skip", given={"pairs": place / "missing.txt"}, what="figures"),
        "amp": Changes("bf16", what="figures"),
    }

    def outcome(settings):
        output = settings["output"]
        shutil.rmtree(output, ignore_errors=True)
        try:
            verify(TestConfig(**settings))
            report = json.loads((output / "report.json").read_text())
        except (UserError, FileNotFoundError) as error:
            report = {"error": type(error).__name__}
        journal = output / "aligned" / "align.jsonl"
        aligned = journal.read_text() if journal.exists() else ""
        found = figures(report, without=("embedder", "protocol"))
        return {**found, "aligned": {"journal": aligned}}

    base = {"run": place / "run0", "images": place / "faces/test", "pairs": place / "pairs.txt"}
    base |= {"output": place / "report", "device": "cpu"}
    check(TestConfig, name, entries, outcome, base)


@pytest.mark.parametrize("name", flags(EmbedConfig))
def test_every_flag_of_embed(name, place):
    entries = USE | {
        "run": Changes(place / "run1", what="figures"),
        "images": Changes(place / "others/test", what="figures"),
        "mirror": Changes(what="figures"),
        "embedder": DOWNLOADED,
        "weights": DOWNLOADED,
    }

    def outcome(settings):
        embed_images(EmbedConfig(**settings))
        with np.load(settings["output"]) as found:
            return figures({name: found[name].tolist() for name in found.files})

    base = {"run": place / "run0", "images": place / "faces/test"}
    base |= {"output": place / "out_rows.npz", "device": "cpu"}
    check(EmbedConfig, name, entries, outcome, base)


@pytest.mark.parametrize("name", flags(VerifyConfig))
def test_every_flag_of_verify(name, place):
    faces = place / "faces/test"
    entries = {
        "run": Changes(place / "run1", what="figures"),
        "first": Changes(faces / "a/a_0002.png", what="figures"),
        "second": Changes(faces / "a/a_0002.png", what="figures"),
        "fpr": Changes(0.01, what="figures"),
        "report": Changes(place / "report0.2.json", what="figures"),
        "align": Changes(True, what="figures"),
        "checkpoint": USE["checkpoint"],
    }

    def outcome(settings):
        try:
            found = verify_photographs(VerifyConfig(**settings))
        except ValueError as error:  # no face, where one is looked for
            return figures({"error": type(error).__name__})
        return figures({"score": found.score, "threshold": found.threshold})

    base = {
        "run": place / "run0",
        "first": faces / "a/a_0001.png",
        "second": faces / "b/b_0001.png",
    }
    base |= {"align": False, "report": place / "report0.1.json"}
    check(VerifyConfig, name, entries, outcome, base)


@pytest.mark.parametrize("name", flags(EvaluateConfig))
def test_every_flag_of_evaluate(name, place):
    elsewhere = Same("packs, networks and templates are evaluated in test_use.py")
    entries = {
        "embeddings": Changes(place / "others.npz", what="figures"),
        "names": Changes(place / "renamed.txt", what="figures"),
        "onnx": elsewhere,
        "images": elsewhere,
        "pairs": Changes(place / "other.txt", what="figures"),
        "pack": elsewhere,
        "templates": elsewhere,
        "scores": elsewhere,
        "probe": elsewhere,
        "gallery": elsewhere,
        "output": USE["output"],
    }

    def outcome(settings):
        evaluate(EvaluateConfig(**settings))
        return figures(json.loads(settings["output"].read_text()))

    base = {"embeddings": place / "rows.npz", "pairs": place / "pairs.txt"}
    check(EvaluateConfig, name, entries, outcome, {**base, "output": place / "found.json"})


@pytest.mark.parametrize("name", flags(DrawConfig))
def test_every_flag_of_pairs(name, place):
    fewer = place / "fewer"
    if not fewer.exists():
        shutil.copytree(place / "faces/test", fewer)
        shutil.rmtree(fewer / "c")
    entries = {
        "images": Changes(fewer, what="figures"),
        "output": USE["output"],
        "folds": Changes(3, what="figures"),
        "per_fold": Changes(4, what="figures"),
        "seed": Changes(1, what="figures"),
    }

    def outcome(settings):
        draw(DrawConfig(**settings))
        return figures({"lines": settings["output"].read_text()})

    base = {"images": place / "faces/test", "output": place / "drawn.txt"}
    check(DrawConfig, name, entries, outcome, {**base, "folds": 2, "per_fold": 5})


@pytest.mark.parametrize("name", flags(AlignConfig))
def test_every_flag_of_align(name, place, tmp_path):
    for number in (1, 2):
        folder = tmp_path / f"photographs{number}"
        folder.mkdir()
        shutil.copy(place / f"faces/test/a/a_000{number}.png", folder / "photograph.png")
    entries = {
        "images": Changes(tmp_path / "photographs2", what="files"),
        "output": USE["output"],
        "size": Changes("112x112", what="files"),
        "select": Same("of several faces in a photograph: see test_align.py"),
        "fallback": Changes("skip", what="files"),
        "preview": Changes(tmp_path / "aligned/sheet.png", what="files"),
        "workers": Same("they share the photographs out: see test_align.py"),
        "device": USE["device"],
    }

    def outcome(settings):
        shutil.rmtree(settings["output"], ignore_errors=True)
        align(AlignConfig(**settings))
        pictures = settings["output"].rglob("*.png")
        return {"files": {file.name: file.read_bytes() for file in pictures}}

    base = {"images": tmp_path / "photographs1", "output": tmp_path / "aligned", "device": "cpu"}
    check(AlignConfig, name, entries, outcome, base)


@pytest.mark.parametrize("name", flags(ExportConfig))
def test_every_flag_of_export(name, place):
    entries = {
        "run": Changes(place / "run1", what="figures"),
        "format": Same("each is written and read in test_use.py"),
        "output": USE["output"],
        "checkpoint": USE["checkpoint"],
    }

    def outcome(settings):
        export(ExportConfig(**settings))
        return figures(load_file(settings["output"]))

    base = {"run": place / "run0", "format": "safetensors"}
    base |= {"output": place / "model.safetensors"}
    check(ExportConfig, name, entries, outcome, base)


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (TestConfig, {"run": "x", "weights": "w"}, "--weights goes with --embedder"),
        (TestConfig, {"run": "x", "align": True}, "--align goes with --images"),
        (EmbedConfig, {"run": "x", "images": "i", "weights": "w"}, "--weights goes with"),
        (EvaluateConfig, {"embeddings": "e", "pairs": "p", "images": "i"}, "--images goes with"),
        (EvaluateConfig, {"embeddings": "e", "pairs": "p", "scores": "s"}, "--scores goes with"),
        (EvaluateConfig, {"onnx": "o", "pairs": "p", "images": "i", "names": "n"}, "--names goes"),
    ],
)
def test_a_flag_that_could_do_nothing_is_refused(config_class, settings, message, tmp_path):
    output = {"output": tmp_path / "x.npz"} if config_class is EmbedConfig else {}
    with pytest.raises(UserError, match=message):
        config_class(**settings, **output)
