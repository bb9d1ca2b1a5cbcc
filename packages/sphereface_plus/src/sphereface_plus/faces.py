"""One photograph: find its face and bring its landmarks to the reference points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

__all__ = ["SIZES", "Face", "FaceDetector", "centre_crop", "warp_face"]

Points = NDArray[np.float64]

# Eyes, nose and corners of the mouth, (x, y), in SphereFace's aligned image of 112×96.
LANDMARKS = np.array(
    [
        [30.2946, 51.6963],
        [65.5318, 51.5014],
        [48.0252, 71.7366],
        [33.5493, 92.3655],
        [62.7299, 92.2041],
    ]
)
# Height and width of an aligned image, and where its landmarks belong.
SIZES: dict[str, tuple[tuple[int, int], Points]] = {
    "112x96": ((112, 96), LANDMARKS),
    "112x112": ((112, 112), LANDMARKS + np.array([8.0, 0.0])),
}
# What torch says when MTCNN joins no candidates, or enlarges one without pixels.
NO_CANDIDATES = ("non-empty list", "sizes should be greater than 0")
LONGEST_SIDE = 1024  # a larger photograph is searched for faces at this size


@dataclass(frozen=True)
class Face:
    """A face found: box (left, top, right, bottom), probability, five landmarks [5, 2] (x, y)."""

    box: Points
    probability: float
    landmarks: Points


class FaceDetector:
    """facenet-pytorch's MTCNN, one image at a time, so that none can stop the others.

    Args:
        device: where the networks run.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        from facenet_pytorch import MTCNN

        self.mtcnn: Any = MTCNN(select_largest=False, device=torch.device(device))

    def __call__(self, image: Image.Image) -> list[Face]:
        """All faces of an RGB image, in its coordinates; an empty list if there is none."""
        shrink = max(1.0, max(image.size) / LONGEST_SIDE)
        if shrink > 1:
            image = image.resize([max(1, round(side / shrink)) for side in image.size])
        try:
            boxes, probabilities, landmarks = self.mtcnn.detect(image, landmarks=True)
        except (IndexError, RuntimeError, ValueError) as error:
            if says_no_face(error):
                return []
            raise
        if boxes is None:
            return []
        # Arrays of objects come from the detector.
        return [
            Face(np.asarray(box, float) * shrink, float(p), np.asarray(points, float) * shrink)
            for box, p, points in zip(boxes, probabilities, landmarks, strict=True)
        ]


def says_no_face(error: Exception) -> bool:
    """Whether the error is how MTCNN says that an image is too small, or all its candidates are.

    All others are the machine's, such as a lack of memory, and no facts about the photograph.
    """
    return isinstance(error, IndexError) or any(text in str(error) for text in NO_CANDIDATES)


def select_face(faces: list[Face], size: tuple[int, int], rule: str) -> Face:
    """The person whom the photograph shows, of the faces found.

    Args:
        faces: at least one.
        size: width and height of the photograph.
        rule: ``"centre"``, nearest to the centre, weighted by size: the largest area less twice
            the squared distance from the centre; ``"largest"``; or ``"probability"``.
    """

    def area(face: Face) -> float:
        left, top, right, bottom = face.box
        return (right - left) * (bottom - top)

    def centrality(face: Face) -> float:
        offset = (face.box[:2] + face.box[2:]) / 2 - np.array(size) / 2
        return area(face) - 2 * float(offset @ offset)

    rules = {"centre": centrality, "largest": area, "probability": lambda f: f.probability}
    return max(faces, key=rules[rule])


def similarity(points: Points, target: Points) -> Points:
    """The similarity transform [2, 3] that brings points [n, 2] nearest to their targets.

    Least squares in a, b, u, v of (x, y) → (a·x − b·y + u, b·x + a·y + v): a rotation with one
    scale and no reflection.
    """
    x, y = points.T
    zeros, ones = np.zeros_like(x), np.ones_like(x)
    equations = np.concatenate(
        [np.stack([x, -y, ones, zeros], 1), np.stack([y, x, zeros, ones], 1)]
    )
    a, b, u, v = np.linalg.lstsq(equations, target.T.ravel(), rcond=None)[0]
    return np.array([[a, -b, u], [b, a, v]])


def warp_face(image: Image.Image, landmarks: Points, size: str = "112x96") -> Image.Image:
    """The face with its landmarks [5, 2] at the reference points, black beyond the photograph.

    Example:
        >>> from PIL import Image
        >>> warp_face(Image.new("RGB", (250, 250)), 2 * LANDMARKS).size
        (96, 112)
    """
    (height, width), target = SIZES[size]
    matrix = similarity(landmarks, target)
    # Where the face shrinks, the pixels between are averaged first, not skipped.
    factor = max(1, int(1 / np.hypot(*matrix[:, 0])))
    if factor > 1:
        image = image.reduce(factor)
        centres = (landmarks - (factor - 1) / 2) / factor
        matrix = similarity(centres, target)
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    # Landmarks count from the centre of the first pixel, Pillow from its corner.
    inverse[:, 2] += 0.5 - inverse[:, :2].sum(1) / 2
    return image.transform(
        (width, height),
        Image.Transform.AFFINE,
        tuple(inverse.ravel()),
        resample=Image.Resampling.BICUBIC,
    )


def centre_crop(image: Image.Image, size: str = "112x96") -> Image.Image:
    """The largest window of that shape in the middle of the photograph, at that size."""
    (height, width), _ = SIZES[size]
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
