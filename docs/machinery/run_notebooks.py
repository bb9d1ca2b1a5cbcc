"""Run the notebooks and keep what they print: ``python docs/machinery/run_notebooks.py [NAME …]``.

Outputs are kept in git, so that the site needs no kernel.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a kernel of its own; ends with a cell's error, if any."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # whatever is set here
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":  # warnings name files of this machine
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Run what is asked for, or all."""
    paths = [NOTEBOOKS / f"{name}.ipynb" for name in sys.argv[1:]]
    for path in paths or sorted(NOTEBOOKS.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
