"""Distributions of a third party, as an installer lays them out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["write_distribution"]


def write_distribution(
    folder: Path,
    name: str,
    entry_points: Mapping[str, Iterable[tuple[str, str]]],
    modules: Mapping[str, str] | None = None,
    version: str = "1.0",
    summary: str = "Its summary.",
) -> Path:
    """Write a distribution's metadata and modules into a folder; returns the folder.

    Args:
        folder: what is to be put on ``sys.path``.
        name: of the distribution.
        entry_points: by group, pairs of a name and its target, ``module:attribute``.
        modules: sources by their path in the folder.
        version: of the distribution.
        summary: of the distribution.
    """
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\n"
    )
    lines = []
    for group, targets in entry_points.items():
        lines += [f"[{group}]", *(f"{key} = {target}" for key, target in targets), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for path, source in (modules or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(source)
    return folder
