"""The tables of the pages are those of docs/results."""

import json
import runpy
from pathlib import Path

import pytest
import yaml

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = runpy.run_path(str(DOCS / "machinery" / "results.py"))
GATHER = runpy.run_path(str(DOCS / "machinery" / "gather.py"))
PAGES = [page for page in RESULTS["pages"]() if "<!-- results:" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_a_page_has_the_tables_of_the_results(page):
    text = page.read_text()
    assert RESULTS["redrawn"](text) == text, "python docs/machinery/results.py makes them anew"


def test_every_table_stands_in_a_page():
    shown = {found[1] for page in PAGES for found in RESULTS["BLOCK"].findall(page.read_text())}
    assert shown == {*RESULTS["TABLES"], *RESULTS["COMBINED"]}
    assert {file.stem for file in RESULTS["RESULTS"].glob("*.json")} == set(RESULTS["TABLES"])


def test_a_wrong_figure_is_seen():
    page = next(page for page in PAGES if "cifar_family" in page.read_text())
    text = page.read_text().replace("| so | ", "| so | 1", 1)
    assert text != page.read_text()
    assert RESULTS["redrawn"](text) == page.read_text()


def a_run(folder, method, seed, error, accuracies, **settings):
    path = folder / method / f"seed{seed}"
    path.mkdir(parents=True)
    lines = [{"step": 10 * k, "train_accuracy": x} for k, x in enumerate(accuracies, start=1)]
    lines[-1] |= {"test_error": error, "hidden_above_floor": 0.5}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"seed": seed, "test_error": error, "steps": 10 * len(lines), "seconds": 3.5}
    (path / "summary.json").write_text(json.dumps(summary))
    config = {"output": str(path), "seed": seed, **{"lr": 0.1, **settings}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def test_runs_are_gathered_beside_those_that_are_there(tmp_path, capsys):
    file = tmp_path / "results.json"
    told = ["--command", "compare", "--hardware", "a laptop"]
    a_run(tmp_path / "1", "none", 0, 0.9, [0.1, 0.3, 0.2])
    a_run(tmp_path / "1", "mhe", 0, 0.5, [0.3, 0.1, 0.3, 0.4])
    with pytest.raises(SystemExit):
        GATHER["main"]([str(file), str(tmp_path / "1")])
    assert "expected --command" in capsys.readouterr().err
    GATHER["main"]([str(file), str(tmp_path / "1"), *told])
    a_run(tmp_path / "2", "mhe", 1, 0.6, [0.3])
    unfinished = a_run(tmp_path / "2", "none", 1, 0.7, [0.3])
    (unfinished / "summary.json").unlink()
    GATHER["main"]([str(file), str(tmp_path / "2")])
    assert f"not complete: {unfinished}" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert (found["command"], found["hardware"], found["seeds"]) == ("compare", "a laptop", [0])
    assert found["methods"]["none"] == {
        "config": {"lr": 0.1},
        "runs": [
            {
                "seed": 0,
                "test_error": 0.9,
                "steps": 30,
                "error_at": {"30": 0.9},
                "hidden_above_floor_at": {"30": 0.5},
                "train_accuracy_above_0.2_from_step": None,
            }
        ],
    }
    first, second = found["methods"]["mhe"]["runs"]
    assert first["train_accuracy_above_0.2_from_step"] == 30
    assert second["seed"] == 1
    table = RESULTS["leaving_chance"](found)
    assert table.splitlines()[2:] == ["| none | never |", "| mhe | 30 |"]  # of the common seed
    assert "| mhe | 50.00 ± 0.00 |" in RESULTS["TABLES"]["cifar_family"](found)
    a_run(tmp_path / "3", "mhe", 2, 0.6, [0.3], lr=0.2)
    with pytest.raises(SystemExit, match="other settings than mhe's runs: lr"):
        GATHER["main"]([str(file), str(tmp_path / "3")])
    assert json.loads(file.read_text()) == found


def test_the_scores_of_a_gan_are_gathered(tmp_path):
    path = tmp_path / "gan" / "sn" / "seed0"
    path.mkdir(parents=True)
    line = {"step": 10, "loss": 1.5, "discriminator_above_floor": 0.1}
    (path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (path / "summary.json").write_text(json.dumps({"seed": 0, "steps": 10, "step_seconds": 0.1}))
    final = {"step": 10, "inception_score": 1.9, "fid": 26.5}
    (path / "test.json").write_text(json.dumps({"num_samples": 100, "final": final}))
    config = {"seed": 0, "lr": 2e-4, "feature_extractor": "/where/it/was"}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    file = tmp_path / "results.json"
    told = ["--command", "mhe-gan compare", "--hardware", "a laptop"]
    GATHER["main"]([str(file), str(tmp_path / "gan"), *told])
    method = json.loads(file.read_text())["methods"]["sn"]
    curve = {"discriminator_above_floor_at": {"10": 0.1}}
    assert method == {
        "config": {"lr": 2e-4},
        "runs": [{"seed": 0, "steps": 10, **final, **curve}],
    }
