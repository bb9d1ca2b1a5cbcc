"""The Fréchet distance of many resamples to one reference, and its limit for endless images.

FID is biased: of few images it is too high, by about a constant over their number. Chong and
Forsyth, *Effectively Unbiased FID and Inception Score and Where to Find Them* (CVPR 2020,
arXiv:1911.07023), fit a straight line to FID against 1/N and read it off at 0.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from mhe_core.errors import UserError
from torch import Tensor

from mhe_gan.features import FeatureSet

__all__ = ["FrechetReference", "extrapolated_frechet"]

POINTS = 15  # numbers of images through which the line goes, as in the paper


class FrechetReference:
    """Distances of weighted sets of features to one Gaussian.

    ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₂^½ Σ₁ Σ₂^½)^½, with the root of the reference's covariance
    found once. The same number as of (Σ₁ Σ₂)^½, to rounding.

    Args:
        mean: μ₂ [d].
        covariance: Σ₂ [d, d].
    """

    def __init__(self, mean: np.ndarray, covariance: np.ndarray) -> None:
        self.mean = torch.from_numpy(mean)
        values, vectors = torch.linalg.eigh(torch.from_numpy(covariance))
        self.trace = values.sum()
        self.root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    def distance(self, features: Tensor, counts: Tensor | None = None) -> float:
        """Of features [N, d], each counted so often [N] (default: once) among the images."""
        x = features.double()
        weights = torch.ones(len(x), dtype=x.dtype) if counts is None else counts.double()
        total = weights.sum()
        mean = weights @ x / total
        centred = (x - mean) * (weights / (total - 1)).sqrt()[:, None]
        rows = centred @ self.root
        gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
        cross = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().sum()
        gap = (mean - self.mean).square().sum()
        return float(gap + centred.square().sum() + self.trace - 2 * cross)


def extrapolated_frechet(
    generated: FeatureSet, reference: FeatureSet, seed: int = 0
) -> tuple[float, float]:
    """FID of endlessly many generated images, and the standard error of the line that says so.

    Args:
        generated: with their features, at least 100 images.
        reference: what they are compared with; its own bias stays.
        seed: of the subsets, which are of N/10 to N images, or of 2 d to N where N/10 is less: of
            fewer, FID does not lie on a line.

    Raises:
        ValueError: if there are fewer than 100 images, or their features are not known.
    """
    features = generated.features
    if features is None or len(features) < 100:
        raise UserError(
            "expected the features of at least 100 images to extrapolate from, "
            f"got {generated.num_images}"
        )
    N = len(features)
    target = FrechetReference(*reference.gaussian)
    fewest = max(N / 10, min(2 * features.shape[1], N / 2))
    sizes = np.linspace(fewest, N, POINTS).round().astype(int)
    distances = [target.distance(_rows(generated.subset(n, seed + n))) for n in sizes.tolist()]
    x = 1 / sizes
    slope, intercept = np.polyfit(x, distances, 1)
    residual = np.asarray(distances) - (intercept + slope * x)
    variance = residual @ residual / (POINTS - 2)
    spread = ((x - x.mean()) ** 2).sum()
    return float(intercept), math.sqrt(variance * (1 / POINTS + x.mean() ** 2 / spread))


def _rows(images: FeatureSet) -> Tensor:
    assert images.features is not None
    return images.features
