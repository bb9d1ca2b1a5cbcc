"""The text files in which IJB-B and IJB-C list their templates, scores, pairs and people."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from mhe_core.training.images import DataError
from numpy.typing import NDArray

from sphereface_plus.textfile import read_lines

__all__ = ["read_scores", "read_subjects", "read_template_pairs", "read_templates"]

Ints = NDArray[np.int64]


def read_templates(file: Path) -> tuple[list[str], Ints, Ints]:
    """The images' names, templates and media, of ``face_tid_mid.txt``: ``name template medium``."""
    listed = rows(file, 3)
    template, media = (
        np.array([integer(parts[i], file, line) for line, parts in listed]) for i in (1, 2)
    )
    return [parts[0] for _, parts in listed], template, media


def read_scores(file: Path, names: list[str]) -> list[float]:
    """Each image's weight, the last column of ``name_5pts_score.txt``."""
    weight = {parts[0]: finite_number(parts[-1], file, line) for line, parts in rows(file, 2)}
    if lost := [name for name in names if name not in weight]:
        raise DataError(f"expected a score of {lost[0]} in {file}, found none")
    return [weight[name] for name in names]


def read_template_pairs(file: Path) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Two templates and whether they are of one person, of ``template_pair_label.txt``."""
    pairs = [[integer(part, file, line) for part in parts[:3]] for line, parts in rows(file, 3)]
    first, second, same = np.array(pairs).T
    return first, second, same.astype(bool)


def read_subjects(file: Path) -> dict[int, int]:
    """The person of each template, of a gallery's or the probes' CSV: ``template,subject,…``.

    A first line of names is left out. A template can have a line for each of its images.

    Raises:
        DataError: if a template has two persons, or a line is no such; names it.
    """
    subject: dict[int, int] = {}
    listed = rows(file, 2)
    if not listed[0][1][0].isdecimal():
        listed = listed[1:]
    for line, parts in listed:
        template, person = (integer(part, file, line) for part in parts[:2])
        if subject.setdefault(template, person) != person:
            raise DataError(
                f"{file}:{line}: expected template {template} of one person, got "
                f"{subject[template]} and {person}"
            )
    if not subject:
        raise DataError(f"expected templates and their persons in {file}, got names alone")
    return subject


def rows(file: Path, count: int) -> list[tuple[int, list[str]]]:
    """The lines' numbers and their values, at least ``count``, between spaces or commas."""
    found = []
    for number, line in enumerate(read_lines(file), 1):
        parts = line.replace(",", " ").split()
        if len(parts) < count:
            raise DataError(f"{file}:{number}: expected {count} values or more, got {line!r:.80}")
        found.append((number, parts))
    return found


def integer(text: str, file: Path, line: int) -> int:
    """A whole number; a DataError that names the line."""
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{file}:{line}: expected a whole number, got {text!r:.80}") from None


def finite_number(text: str, file: Path, line: int) -> float:
    """A number; a DataError that names the line."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise DataError(f"{file}:{line}: expected a finite number, got {text!r:.80}")
    return found
