"""Are two photographs one person? A trained run, ready for use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from mhe_core.errors import UserError
from mhe_core.training.augment import normalize
from mhe_core.training.images import DataError, read_image, resize, to_tensor
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from sphereface_plus.embedding import load_run
from sphereface_plus.faces import FaceDetector, select_face, warp_face

__all__ = ["Comparison", "FaceVerifier"]

Photograph = str | Path | Image.Image


@dataclass(frozen=True)
class Comparison:
    """What :meth:`FaceVerifier.compare` found.

    Attributes:
        score: cosine of the embeddings, −1 to 1.
        threshold: from which on the photographs are taken for one person; None: not known.
        fpr: the share of different pairs that the threshold lets pass, where it was measured.
        same: whether they are one person; None without a threshold.
    """

    score: float
    threshold: float | None
    fpr: float | None

    @property
    def same(self) -> bool | None:
        """Whether the score reaches the threshold."""
        return None if self.threshold is None else self.score >= self.threshold


class FaceVerifier:
    """A backbone and the thresholds that were measured for it.

    Args:
        backbone: from images to embeddings, in evaluation mode.
        size: height and width of its images.
        thresholds: cosine by false positive rate.
        align: find the face and align it; False: the photographs are aligned faces.

    Example:
        >>> verifier = FaceVerifier.load("runs/faces")  # doctest: +SKIP
        >>> verifier.compare("a.jpg", "b.jpg", fpr=0.01).same  # doctest: +SKIP
        True
    """

    def __init__(
        self,
        backbone: nn.Module,
        size: tuple[int, int],
        thresholds: dict[float, float] | None = None,
        align: bool = True,
    ) -> None:
        self.backbone = backbone.eval()
        self.size = size
        self.thresholds = thresholds or {}
        self.align = align
        self._detector: FaceDetector | None = None

    @classmethod
    def load(
        cls,
        run: str | Path,
        checkpoint: str = "best",
        report: Path | None = None,
        align: bool = True,
    ) -> FaceVerifier:
        """A run, with the thresholds of its report, if ``sphereface-plus test`` has made one.

        Args:
            run: a run directory of train.
            checkpoint: best or last.
            report: a ``report.json`` of test; default: ``test/report.json`` in the run directory.
            align: find the face and align it.

        Raises:
            RunError: if ``run`` is not a run directory.
            FileNotFoundError: if the report was named and is not there.
        """
        model, _, facts = load_run(Path(run), checkpoint)
        file = report or Path(run) / "test" / "report.json"
        thresholds = {}
        if report is not None or file.is_file():
            measured = json.loads(file.read_text())["cosine_at_fpr"]
            thresholds = {float(fpr): value for fpr, value in measured.items()}
        return cls(model.backbone, tuple(facts["image_size"]), thresholds, align)

    @torch.no_grad()
    def embed(self, photograph: Photograph) -> Tensor:
        """The embedding [d] of a photograph's face, of length 1: with its mirror image's, summed.

        Raises:
            DataError: if the photograph cannot be read, or shows no face.
        """
        pixels = normalize(to_tensor(resize(self._face(photograph), self.size))[None])
        plain, mirrored = self.backbone(torch.cat([pixels, pixels.flip(-1)])).float()
        return functional.normalize(plain + mirrored, dim=0)

    def compare(self, a: Photograph, b: Photograph, fpr: float = 1e-3) -> Comparison:
        """Two photographs, paths or Pillow's images.

        Args:
            a: one photograph.
            b: the other.
            fpr: which of the measured thresholds decides.

        Raises:
            DataError: if a photograph cannot be read, or shows no face.
            ValueError: if the threshold at this FPR was not measured, but others were.
        """
        if self.thresholds and fpr not in self.thresholds:
            known = ", ".join(f"{level:g}" for level in self.thresholds)
            raise UserError(f"expected fpr to be one of the measured {known}, got {fpr:g}")
        score = float(self.embed(a) @ self.embed(b))
        return Comparison(score, self.thresholds.get(fpr), fpr if self.thresholds else None)

    def _face(self, photograph: Photograph) -> Image.Image:
        if isinstance(photograph, Image.Image):
            image, name = photograph.convert("RGB"), "the photograph"
        else:
            image, name = read_image(Path(photograph)), str(photograph)
        if not self.align:
            return image
        if self._detector is None:
            self._detector = FaceDetector()
        faces = self._detector(image)
        if not faces:
            raise DataError(f"expected a face in {name}, found none")
        chosen = select_face(faces, image.size, "centre")
        # The reference points of the training images' shape: square ones are as wide as high.
        reference = "112x112" if self.size[0] == self.size[1] else "112x96"
        return warp_face(image, chosen.landmarks, reference)
