import json
import sys

from support.programs import run_program


def test_bench_writes_a_table_and_a_picture(tmp_path):
    command = ["-m", "mhe_uniformity.cli", "bench", "--quick", "--output", tmp_path]
    run = run_program(sys.executable, *command, "--regularizers", "koleo,half_mhe")
    table = (tmp_path / "table.md").read_text()
    assert table in run.stdout
    assert [line.split(" | ")[0] for line in table.splitlines()[2:4]] == ["| koleo", "| half_mhe"]
    costs = json.loads((tmp_path / "table.json").read_text())["costs"]
    assert [(cost["name"], cost["N"], cost["d"]) for cost in costs] == [
        (name, N, d) for name in ("koleo", "half_mhe") for N, d in ((16, 8), (64, 32))
    ]
    assert all(cost["ratio"] > 0 and cost["seconds"] > 0 for cost in costs)
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")
