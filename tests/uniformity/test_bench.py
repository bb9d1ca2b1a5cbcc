import json
import re
import sys
from dataclasses import asdict

import pytest
from mhe_uniformity import bench, cli
from mhe_uniformity.bench import Cost, distribution_names, measure, plot, write_table
from support.programs import run_program

SIZES = ((16, 8), (64, 32))


def test_a_cost_is_measured_in_the_table_and_in_the_picture(tmp_path):
    measured = measure("koleo", 16, 8)
    assert measured.ratio > 0
    assert measured.seconds > 0
    costs = [
        measured,
        Cost("koleo", 64, 32, 2.5, 1.25, 3.0),
        Cost("mgd", 16, 8, 1.0, 9.0, 3.0),
        Cost("mgd", 64, 32, None, None, None),
    ]
    known = {"hardware": "a laptop", "most_seconds": 60, "costs": [asdict(cost) for cost in costs]}
    table = write_table(known, tmp_path)
    lines = table.splitlines()
    assert lines[0] == "| regularizer | 16×8 | 64×32 |"
    assert lines[2].endswith("| 1.25, 3 MiB |")
    assert lines[3] == "| mgd | 9, 3 MiB | – |"
    assert "left out, as a step would take more than 60 seconds" in lines[-1]
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["costs"][1]["seconds"] == 2.5
    plot(content, tmp_path / "costs.png")
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")


def test_all_of_ours_are_measured_by_default():
    assert set(distribution_names()) >= {"half_mhe", "koleo", "srip"}


def test_sizes_are_neurons_by_dimensions():
    assert cli.size("64x576") == cli.size(" 64×576") == (64, 576)


def test_names_are_its_own_and_cores_whatever_others_are_called(clash):
    names = distribution_names()
    assert names[:2] == ["mhe-core:mhe", "mhe-core:half_mhe"]
    assert {"mhe-uniformity:koleo", "srip"} <= set(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--regularizers", "kolio"], "did you mean 'koleo'"),
        (["--sizes", "64x576,big"], "expected --sizes such as 64x576,256x2304, got 'big'"),
        (["--most-seconds", "0"], "expected --most-seconds above 0, got 0"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_command_measures_in_fresh_processes(tmp_path):
    command = ["-m", "mhe_uniformity.cli", "bench", "--quick", "--output", tmp_path]
    run = run_program(sys.executable, *command, "--regularizers", "koleo,half_mhe")
    table = (tmp_path / "table.md").read_text()
    assert table in run.stdout
    assert [line.split(" | ")[0] for line in table.splitlines()[2:4]] == ["| koleo", "| half_mhe"]
    costs = json.loads((tmp_path / "table.json").read_text())["costs"]
    assert [(cost["name"], cost["N"], cost["d"]) for cost in costs] == [
        (name, N, d) for name in ("koleo", "half_mhe") for N, d in SIZES
    ]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--regularizers", "koleo"),
        ("--sizes", "64x576"),
        ("--quick", None),
        ("--most-seconds", "5"),
        ("--output", "elsewhere"),
    ],
)
def test_every_flag_changes_what_is_measured(flag, value, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(bench, "bench", lambda *arguments: asked.append(arguments) or "table")
    cli.main(["bench"])
    cli.main(["bench", flag, *([value] if value else [])])
    plain, changed = asked
    assert sum(a != b for a, b in zip(plain, changed, strict=True)) == 1
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    shown = set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, flags=re.MULTILINE))
    assert shown == {"--regularizers", "--sizes", "--quick", "--most-seconds", "--output"}
