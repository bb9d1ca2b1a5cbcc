"""``sphereface-plus align --check DIR``: are these faces aligned as the networks expect?

The detector looks for the landmarks of each image again; their distances from the reference points
tell whether the set was aligned to them, to others, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mhe_core.training.images import DataError, find_images, printable, read_image

from sphereface_plus.faces import SIZES, FaceDetector, Points, select_face

__all__ = ["CheckConfig", "FolderCheck", "check_alignment", "check_lines"]

NEAR = 5.0  # pixels, mean over five landmarks: aligned faces are at 2 to 4


@dataclass(kw_only=True)
class CheckConfig:
    """Say, folder by folder, how far the faces' landmarks lie from the reference points.

    Attributes:
        check: the folder of aligned faces.
        each: images of a folder that are looked at; 0: all.
        device: where the detector runs.
    """

    check: Path
    each: int = 5
    device: str = "cpu"


@dataclass(frozen=True)
class FolderCheck:
    """What was found in a folder.

    Attributes:
        folder: relative to the set's.
        images: how many were looked at.
        size: height and width of the first.
        offsets: of the landmarks of each face found from the reference points, [n, 5, 2], in
            pixels; images without a face or of another size than the references have none.
    """

    folder: str
    images: int
    size: tuple[int, int]
    offsets: Points

    @property
    def distance(self) -> float:
        """Mean distance of the landmarks from the reference points, NaN without any."""
        if not len(self.offsets):
            return float("nan")
        return float(np.linalg.norm(self.offsets, axis=2).mean())


def check_alignment(config: CheckConfig) -> list[FolderCheck]:
    """Look at up to ``each`` images of every folder.

    Raises:
        FileNotFoundError: if there is no such folder.
        DataError: if it has no image, or one cannot be read.
    """
    if not config.check.is_dir():
        raise FileNotFoundError(f"expected a folder of faces at {config.check}, found none")
    folders: dict[Path, list[Path]] = {}
    for path in find_images(config.check).paths:
        folders.setdefault(path.parent, []).append(path)
    if not folders:
        raise DataError(f"expected images in {config.check}, found none")
    detector = FaceDetector(config.device)
    return [
        check_folder(folder.relative_to(config.check), paths, detector, config.each)
        for folder, paths in folders.items()
    ]


def check_folder(folder: Path, paths: list[Path], detector: FaceDetector, each: int) -> FolderCheck:
    """Evenly over a folder's images."""
    step = max(1, -(-len(paths) // each)) if each else 1
    looked_at = paths[::step]
    offsets, size = [], (0, 0)
    for number, path in enumerate(looked_at):
        image = read_image(path)
        size = size if number else (image.height, image.width)
        reference = SIZES.get(f"{image.height}x{image.width}")
        faces = detector(image) if reference else []
        if reference and faces:
            offsets.append(select_face(faces, image.size, "centre").landmarks - reference[1])
    return FolderCheck(str(folder), len(looked_at), size, np.array(offsets).reshape(-1, 5, 2))


def check_lines(found: list[FolderCheck]) -> Iterator[str]:
    """A line a folder, and one for all."""
    yield "folder\timages\twith a face\tsize\tmean distance, pixels"
    for one in found:
        size = f"{one.size[0]}x{one.size[1]}"
        yield printable(
            f"{one.folder}\t{one.images}\t{len(one.offsets)}\t{size}\t{one.distance:.1f}"
        )
    sizes = {f"{one.size[0]}x{one.size[1]}" for one in found}
    if unknown := sorted(sizes - set(SIZES)):
        yield f"no reference points for images of {', '.join(unknown)}: expected {', '.join(SIZES)}"
    offsets = np.concatenate([one.offsets for one in found])
    if not len(offsets):
        yield "no face found: not aligned faces"
        return
    distance = float(np.linalg.norm(offsets, axis=2).mean())
    right, down = offsets.mean((0, 1))
    verdict = "aligned" if distance <= NEAR else "NOT aligned as expected"
    yield (
        f"{verdict}: {distance:.1f} pixels from the reference points on average over "
        f"{len(offsets)} faces, {right:+.1f} to the right and {down:+.1f} down"
    )
