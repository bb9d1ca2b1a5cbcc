"""Build every package, and use what was built as somebody would who has nothing else.

``make release-check`` runs it. By default the wheels are installed beside the dependencies of this
environment, which takes seconds; with ``--full`` all of those are installed from the index, too.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
WANTED = ("Name", "Version", "Summary", "Keywords", "License-Expression", "License-File")
WANTED += ("Requires-Python", "Classifier", "Project-URL", "Description-Content-Type")

TINY = "--steps 1 --batch-size 8 --workers 0"
SMOKE = (
    "mhe list",
    "mhe check half_mhe",
    "mhe-uniformity --help",
    f"mhe-classification train --output runs/classification --width 0.05 {TINY}",
    f"sphereface-plus train --output runs/faces --model sfnet4 --width 0.1 --dim 16 {TINY}",
    f"mhe-gan train --output runs/gan --width 0.05 {TINY}",
)
# Everything must come from the wheels, and versions from their metadata.
ORIGIN = """
import importlib.metadata, sys
import mhe_core, mhe_classification, mhe_gan, mhe_uniformity, sphereface_plus
for module in (mhe_core, mhe_classification, mhe_gan, mhe_uniformity, sphereface_plus):
    assert module.__file__.startswith(sys.prefix), module.__file__
assert mhe_core.__version__ == importlib.metadata.version("mhe-core")
names = {info.name for info in mhe_core.list_regularizers()}
assert {"half_mhe", "koleo"} <= names, names
"""


def main() -> None:
    """Build, check, install, run; ends with an error at the first thing that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="install all dependencies, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="release-") as folder:
        built = build(Path(folder) / "dist")
        python = install(built, Path(folder) / "venv", arguments.full)
        use(python, Path(folder) / "elsewhere")
    print("release check: passed")


def build(folder: Path) -> list[Path]:
    """The wheels, each made from its sdist, so that this one is complete, too."""
    for package in PACKAGES:
        print(f"build {package.name}", flush=True)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, package)
    files = sorted(folder.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    wheels = [path for path in files if path.suffix == ".whl"]
    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    versions = {check_wheel(path) for path in wheels}
    if versions != {cited}:
        got = ", ".join(sorted(versions))
        raise SystemExit(f"expected all packages to have CITATION.cff's version {cited}, got {got}")
    for path in files:
        if path.name.endswith(".tar.gz"):
            check_sdist(path)
    return wheels


def check_wheel(path: Path) -> str:
    """Its metadata are complete, it is typed, and it holds its module alone; its version."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        found = HeaderParser().parsestr(wheel.read(metadata).decode())
    if missing := [key for key in WANTED if not found[key]]:
        raise SystemExit(f"{path.name}: expected metadata {', '.join(missing)}")
    modules = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    if len(modules) != 1 or not any(name.endswith("py.typed") for name in names):
        raise SystemExit(f"{path.name}: expected one typed module, got {sorted(modules)}")
    return str(found["Version"])


def check_sdist(path: Path) -> None:
    """It has its README and licence."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    if missing := {"README.md", "LICENSE", "pyproject.toml"} - names:
        raise SystemExit(f"{path.name}: expected {sorted(missing)}")


def install(wheels: list[Path], folder: Path, full: bool) -> Path:
    """A new environment with the wheels; its Python."""
    print("install", flush=True)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    if full:
        run(python, "-m", "pip", "install", "--quiet", *wheels)
        run(python, "-m", "pip", "check")
        return python
    found = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    # The dependencies of this environment, after what is installed there. Packages that are
    # installed here as editable are not found by it: their .pth files are not read.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (Path(found.strip()) / "dependencies.pth").write_text("\n".join(others) + "\n")
    offline = ["--quiet", "--no-deps", "--no-index", "--force-reinstall"]
    run(python, "-m", "pip", "install", *offline, *wheels)
    return python


def use(python: Path, folder: Path) -> None:
    """Run the commands in a folder that has no repository around it."""
    folder.mkdir()
    run(python, "-c", ORIGIN, folder=folder)
    for command in SMOKE:
        print(command, flush=True)
        name, *words = command.split()
        run(python.with_name(name), *words, folder=folder)


def run(*command: object, folder: Path | None = None) -> str:
    """Run a program; where it fails, show what it printed and end."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=clean, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
