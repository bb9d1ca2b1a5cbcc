import pytest
from mhe_core.plugins import GROUP


@pytest.fixture(scope="session")
def write_distribution():
    """Lay a distribution out in a folder as an installer would: its modules and metadata."""

    def write(folder, name, targets, modules=None, version="1.0", summary="Its summary."):
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\n"
        )
        lines = [f"{key} = {target}" for key, target in targets]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
        for path, source in (modules or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(source)
        return folder

    return write
