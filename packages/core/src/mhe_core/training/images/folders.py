"""Which images a folder holds, and what in it is left out, and why."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mhe_core.training.images.reading import DataError

__all__ = [
    "NOT_IMAGES",
    "SUFFIXES",
    "FoundClasses",
    "FoundImages",
    "find_classes",
    "find_images",
    "printable",
]

# Files with these endings are taken for images, whatever their case.
SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"}
    | {".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
NOT_IMAGES = "not images by their suffix"
HIDDEN = "hidden"
LINKED_TWICE = "links to what is read already"
OUTSIDE = "outside of the classes' folders"


@dataclass(frozen=True)
class FoundImages:
    """The images below a folder, each once.

    Attributes:
        root: the folder.
        paths: the images, in order of their folders and names.
        left_out: files and folders that are not used, by the reason.
    """

    root: Path
    paths: tuple[Path, ...]
    left_out: dict[str, tuple[Path, ...]]

    def namesakes(self) -> list[tuple[Path, ...]]:
        """Images of one folder whose names differ in the suffix alone, such as a.jpg and a.png."""
        by_name = defaultdict(list)
        for path in self.paths:
            by_name[path.with_suffix("")].append(path)
        return [tuple(paths) for paths in by_name.values() if len(paths) > 1]

    def remarks(self) -> Iterator[str]:
        """What a reader should know: what is left out, and namesakes."""
        if self.left_out:
            parts = (f"{len(paths):,} {why}{_some(paths)}" for why, paths in self._reasons())
            yield f"left out: {'; '.join(parts)}"
        if namesakes := self.namesakes():
            firsts = [paths[0].with_suffix("") for paths in namesakes]
            yield f"{len(namesakes):,} names with several suffixes, all of them used{_some(firsts)}"

    def _reasons(self) -> list[tuple[str, tuple[Path, ...]]]:
        return sorted(self.left_out.items(), key=lambda item: -len(item[1]))


@dataclass(frozen=True)
class FoundClasses(FoundImages):
    """The images of a folder that has one folder a class.

    Attributes:
        classes: names of the C classes, sorted.
        labels: each path's class, in [0, C).
    """

    classes: tuple[str, ...]
    labels: tuple[int, ...]

    def describe(self) -> str:
        """One line: so many images, so many classes, what was left out and why."""
        counts = sorted(Counter(self.labels).values())
        each = f"{counts[0]:,}" if counts[0] == counts[-1] else f"{counts[0]:,} to {counts[-1]:,}"
        what = f"{len(self.paths):,} images, {len(self.classes):,} classes of {each}"
        return "; ".join([f"{printable(self.root)}: {what}", *self.remarks()])


def find_images(root: Path) -> FoundImages:
    """All images below a folder, whatever its layout.

    Links to files and folders are followed, and an image that several ways lead to is found once,
    by the way without links if there is one. Hidden files and folders, among them
    ``.ipynb_checkpoints`` and macOS's ``._x.jpg``, are left out, as is what has no image's suffix.

    Raises:
        DataError: if the folder is missing or cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"expected a folder of images at {root}, found none")
    walk = _Walk()
    walk.into(root)
    walk.follow_links()
    left_out = {why: tuple(sorted(paths)) for why, paths in walk.left_out.items()}
    return FoundImages(root, tuple(sorted(walk.images, key=_place)), left_out)


def find_classes(root: Path) -> FoundClasses:
    """The images of a folder with one folder a class, ``<class>/…``, at any depth in it.

    Raises:
        DataError: if the folder is missing, or has no class, or a class has no image.
    """
    found = find_images(root)
    root, left_out = found.root, dict(found.left_out)
    inside = [path for path in found.paths if path.parent != root]
    inside.sort(key=lambda path: (path.relative_to(root).parts[0], *_place(path)))
    if outside := tuple(path for path in found.paths if path.parent == root):
        left_out[OUTSIDE] = outside
    classes = sorted({path.relative_to(root).parts[0] for path in inside})
    aside = {path.name for paths in left_out.values() for path in paths if path.parent == root}
    folders = {entry.name for entry in root.iterdir() if entry.is_dir()}
    if empty := sorted(folders - set(classes) - aside):
        raise DataError(
            f"expected images in every class of {root}, found none in {', '.join(empty)}"
            f" ({'; '.join(found.remarks()) or 'nothing is there'})"
        )
    if not classes:
        raise DataError(f"expected one folder a class in {root}, found none with images")
    label = {name: number for number, name in enumerate(classes)}
    labels = tuple(label[path.relative_to(root).parts[0]] for path in inside)
    return FoundClasses(root, tuple(inside), left_out, tuple(classes), labels)


def printable(path: Path | str) -> str:
    """A path as text that any UTF-8 stream takes, also where its bytes are no UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")


class _Walk:
    """What was found so far. Links wait until everything that is no link has been seen."""

    def __init__(self) -> None:
        self.images: list[Path] = []
        self.left_out: dict[str, list[Path]] = defaultdict(list)
        self.links: list[Path] = []
        self.seen: set[str] = set()  # real places of folders and images

    def into(self, folder: Path) -> None:
        if not (place := self.first_way(folder, os.path.realpath(folder))):
            return
        try:
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
        for entry in ordered:
            path = Path(entry.path)
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                self.left_out[HIDDEN].append(path)
            elif entry.is_symlink():
                self.links.append(path)
            elif entry.is_dir():
                self.into(path)
            else:
                self.file(path, os.path.join(place, entry.name))

    def file(self, path: Path, place: str) -> None:
        if path.suffix.lower() not in SUFFIXES:
            self.left_out[NOT_IMAGES].append(path)
        elif self.first_way(path, place):
            self.images.append(path)

    def first_way(self, path: Path, place: str) -> str | None:
        """The real place that a path leads to, unless another has led there before."""
        if place in self.seen:
            self.left_out[LINKED_TWICE].append(path)
            return None
        self.seen.add(place)
        return place

    def follow_links(self) -> None:
        while self.links:
            links, self.links = sorted(self.links), []
            for link in links:
                if link.is_dir():
                    self.into(link)
                else:  # a broken one, too: reading it says so
                    self.file(link, os.path.realpath(link))


def _place(path: Path) -> tuple[str, str]:
    """Where torchvision's ImageFolder has it: folder by folder, then by name."""
    return str(path.parent), path.name


def _some(paths: Sequence[Path], most: int = 3) -> str:
    names = ", ".join(printable(path.name) for path in paths[:most])
    return f" ({names}{', …' if len(paths) > most else ''})"
