import sys

import pytest
from mhe_core.cli import main
from support.programs import run_program, script

MODULE = (sys.executable, "-m", "mhe_core.cli")
SCRIPT = (script("mhe"),)


def mhe(*arguments, command=MODULE, path=""):
    return run_program(*command, *arguments, env={"PYTHONPATH": str(path)})


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
