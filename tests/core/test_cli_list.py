import importlib.metadata
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from mhe_core import RegularizerNameError, create_regularizer, list_regularizers
from mhe_core import registry as registry_module
from mhe_core.cli import main
from mhe_core.registry import GROUP, OFFERED, register_regularizer
from support.forks import run_python
from support.programs import script
from torch import nn

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MODULE = ("-m", "mhe_core.cli")
SCRIPT = (script("mhe"),)


def mhe(*arguments, command=MODULE, path=""):
    return run_python(*command, *arguments, env={"PYTHONPATH": str(path)})


@pytest.mark.parametrize("command", [MODULE, SCRIPT], ids=["module", "script"])
def test_each_regularizer_has_a_line(command):
    run = mhe("list", command=command)
    assert run.stderr == ""
    header, *lines = run.stdout.splitlines()
    assert header.split() == ["name", "distribution", "summary"]
    where = {word: header.index(word) for word in header.split()}
    for line in lines:  # aligned: each column starts under its head, after a blank
        for start in where.values():
            assert line[start] != " "
            assert start == 0 or line[start - 1] == " "
    rows = {line.split()[0]: line for line in lines}
    assert list(rows) == sorted(rows)
    for name in ("mhe", "half_mhe"):
        assert rows[name].split()[1] == "mhe-core"
        assert rows[name][where["distribution"] :].split()[1][0].isdigit()
    summaries = [line[where["summary"] :] for line in lines]
    assert len(set(summaries)) == len(lines)
    assert all(len(summary) > 20 for summary in summaries)


def test_a_third_party_is_listed(example_plugin):
    run = mhe("list", path=example_plugin)
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("minimal_angle "))
    assert line.split(maxsplit=3)[1:3] == ["mhe-example-plugin", "0.1.0"]
    assert line.split(maxsplit=3)[3].startswith("Maximum minimal angle")


def test_what_is_broken_is_shown_with_its_problem(tmp_path, write_distribution):
    targets = [("gone", "absent_module:F"), ("garbled", "garbled:F"), ("raising", "raising:F")]
    modules = {"garbled.py": "\nclass F(:", "raising.py": "raise RuntimeError"}
    write_distribution(tmp_path, "broken-dist", targets, modules, version="0.3")
    write_distribution(tmp_path, "other-dist", [("mhe", "raising:F")])
    run = mhe("list", path=tmp_path)
    assert run.stderr == ""
    rows = [line.split(maxsplit=3) for line in run.stdout.splitlines()]
    assert ["gone", "broken-dist", "0.3", "broken: no module named 'absent_module'"] in rows
    assert ["raising", "broken-dist", "0.3", "Its summary."] in rows
    (garbled,) = (row for row in rows if row[0] == "garbled")
    assert garbled[3].startswith("broken: garbled, line 2: ")
    assert [row[1] for row in rows if row[0] == "mhe"] == ["mhe-core", "other-dist"]
    assert run.stdout.splitlines()[-1] == (
        "'mhe' is claimed 2 times: write mhe-core:mhe or other-dist:mhe"
    )


def test_without_a_command_it_says_which_there_are(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert capsys.readouterr().err.startswith("usage: mhe")
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "list" in capsys.readouterr().out


def test_the_list_as_json_has_what_the_function_has(capsys):
    main(["list", "--json"])
    assert json.loads(capsys.readouterr().out) == [asdict(info) for info in list_regularizers()]


CORE = [info.name for info in list_regularizers() if info.distribution == "mhe-core"]
ALL = [1.0, None]  # published weights of hidden and output layer, whose energy is plain MHE


@pytest.mark.parametrize("name", CORE)
def test_info_says_what_is_known_about_each(name, capsys):
    main(["info", name, "--json"])
    info = json.loads(capsys.readouterr().out)
    weights = {"mhe": [1.0, 10.0], "comhe_group": [None, None]}.get(name, ALL)
    assert [info["published_weight"], info["published_output_weight"]] == weights
    assert "arXiv" in info["paper"]
    assert info["distribution"] == "mhe-core"
    assert info["version"] == importlib.metadata.version("mhe-core")
    made = create_regularizer(name, 16, 64, **info["hyperparameters"])  # they are its defaults
    plain = name in ("mhe", "half_mhe")
    assert info["hyperparameters"]["s"] == made.s == 2.0
    assert info["capabilities"] == {
        "potential": plain,
        "batched": True,
        "takes_anchors": True,
        "depends_on_lengths": False,
        "updates": not plain and name != "comhe_group",
    }


def test_info_in_lines_to_read(capsys):
    main(["info", "half_mhe"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("half_mhe: Half-space energy")
    assert lines[1].startswith("origin: mhe-core ")
    assert "published weight: 1 in hidden layers" in lines
    assert "  s=2.0" in lines


class Choosy(nn.Module):
    """One that says nothing about itself."""

    def __init__(self, num_neurons, dim, *, power, factor=nn.ReLU, **others):
        super().__init__()


class Wide(nn.Module):
    def __init__(self, num_neurons, dim):
        raise ValueError("expected dim ≥ 100")


def test_info_of_a_plug_in_that_cannot_be_asked(capsys, monkeypatch):
    monkeypatch.setattr(registry_module, "_registered", {})
    register_regularizer("choosy", Choosy)
    register_regularizer("wide", Wide)
    main(["info", "choosy"])
    text = capsys.readouterr().out
    assert "  power (required)\n  factor=<class" in text
    assert "unknown: some hyperparameters are required" in text
    assert "paper: not said\npublished weight: none" in text
    main(["info", "choosy", "--json"])
    assert json.loads(capsys.readouterr().out)["required"] == ["power"]
    main(["info", "wide"])
    text = capsys.readouterr().out
    assert "unknown: ValueError for 16 neurons of 64 dimensions: expected dim ≥ 100" in text
    with pytest.raises(SystemExit, match="2"):
        main(["info", "wode"])
    assert "did you mean 'wide'" in capsys.readouterr().err


def test_a_name_of_a_distribution_that_is_not_installed_says_which(monkeypatch):
    def those(group):
        return [e for e in importlib.metadata.entry_points(group=group) if e.dist.name != absent]

    absent = "mhe-uniformity"
    monkeypatch.setattr("mhe_core.entry_points.entry_points", those)
    registry_module._installed.cache_clear()
    try:
        for name in ("mhs", "mhe-uniformity:mhs"):
            with pytest.raises(RegularizerNameError, match=r"; pip install mhe-uniformity \("):
                create_regularizer(name, 4, 4)
        with pytest.raises(RegularizerNameError, match="did you mean"):
            create_regularizer("half_mhs", 4, 4)
    finally:
        registry_module._installed.cache_clear()


def test_the_names_that_are_known_of_absent_distributions_are_theirs():
    packages = Path(__file__).parents[2] / "packages"
    for distribution, names in OFFERED.items():
        file = packages / distribution.removeprefix("mhe-") / "pyproject.toml"
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        assert project["name"] == distribution
        assert sorted(names) == sorted(project["entry-points"][GROUP])
