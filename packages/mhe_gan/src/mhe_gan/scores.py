"""Inception Score, FID and KID: of Inception's features, or of a classifier's own.

FID and KID are torch-fidelity's, which agree with the original programs; so does the Inception
Score, which is written out here in logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from mhe_core.errors import UserError
from torch import Tensor, nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from mhe_gan.extractors import load_extractor
from mhe_gan.features import FeatureSet, extract

if TYPE_CHECKING:
    from mhe_gan.metrics import Metric

__all__ = [
    "Scorer",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "load_extractor",
]

SHUFFLE_SEED = 2020  # torch-fidelity's


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """Inception Score: exp of the mean divergence KL(p(y|x) ‖ p(y)) over images x.

    Salimans et al., *Improved Techniques for Training GANs* (NeurIPS 2016). The images are
    shuffled with a fixed seed and cut into splits, each with its own p(y).

    Args:
        logits: class logits of the images, [N, C].
        splits: how many parts; at most N.

    Returns:
        Mean and standard deviation over the splits; each split's score is in [1, C].

    Raises:
        ValueError: if there are fewer images than splits, or ``logits`` is not [N, C].

    Example:
        >>> round(inception_score(torch.zeros(20, 5))[0], 6)  # no image looks like anything
        1.0
    """
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise UserError(
            f"expected logits [N, C] with N at least the {splits} splits, got {list(logits.shape)}"
        )
    N = len(logits)
    order = np.random.RandomState(SHUFFLE_SEED).permutation(N)
    cuts = [N * i // splits for i in range(1, splits)]
    scores = []
    for log_p in logits.cpu()[order].double().log_softmax(1).tensor_split(cuts):  # log p(y|x)
        log_q = log_p.logsumexp(0) - math.log(len(log_p))  # log p(y)
        divergence = (log_p.exp() * (log_p - log_q)).sum(1).mean()
        scores.append(divergence.exp())
    values = torch.stack(scores)
    return values.mean().item(), values.std(correction=0).item()


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features (FID).

    Heusel et al., *GANs Trained by a Two Time-Scale Update Rule* (NeurIPS 2017):
    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½). Biased upwards for few images: compare only scores of
    equally many.

    Args:
        features: of the generated images, [N, d], at least two.
        reference: of the real images, [M, d], at least two.

    Raises:
        ValueError: if there are fewer than two rows, or the dimensions differ.

    Example:
        >>> x = torch.randn(50, 3, dtype=torch.float64)
        >>> abs(round(frechet_distance(x, x + 2), 6))  # the means are 2·√3 apart
        12.0
    """
    check_features(features, reference)
    ours, theirs = (fid_features_to_statistics(x.cpu().double()) for x in (features, reference))
    return float(fid_statistics_to_metric(ours, theirs, False)["frechet_inception_distance"])


def kernel_distance(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Squared maximum mean discrepancy between two sets of features (KID), unbiased.

    Bińkowski et al., *Demystifying MMD GANs* (ICLR 2018), with the kernel (x·y/d + 1)³, over 100
    random subsets of 1,000 images, or of all where there are fewer.

    Args:
        features: of the generated images, [N, d], at least two.
        reference: of the real images, [M, d], at least two.

    Returns:
        Mean and standard deviation over the subsets; the mean can be slightly negative.

    Raises:
        ValueError: if there are fewer than two rows, or the dimensions differ.
    """
    check_features(features, reference)
    found = kid_features_to_metric(
        features.cpu(),
        reference.cpu(),
        kid_subset_size=min(1000, len(features), len(reference)),
        rng_seed=SHUFFLE_SEED,
        verbose=False,
    )
    return found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]


def check_features(features: Tensor, reference: Tensor) -> None:
    """Raise a ValueError unless both are [at least 2, d] with the same d."""
    shapes = [list(x.shape) for x in (features, reference)]
    if any(len(s) != 2 or s[0] < 2 for s in shapes) or shapes[0][1] != shapes[1][1]:
        raise UserError(f"expected features [N, d] and [M, d] with N, M ≥ 2, got {shapes}")


class Scorer:
    """Scores sets of generated images against one set of real ones.

    Args:
        extractor: maps uint8 images [B, 3, H, W] to (features [B, d], logits [B, C]).
        reference: batches of the real images, uint8 [B, 3, H, W]; their features are computed
            once.
        device: where the extractor runs.
        metrics: what to measure beside the Inception Score (where the extractor has class
            logits), FID and KID.

    Raises:
        TypeError: if images are not uint8.

    Example:
        >>> class Colours(nn.Module):
        ...     def forward(self, images):
        ...         features = images.float().mean((2, 3))
        ...         return features, features / 50
        >>> real = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8)
        >>> scores = Scorer(Colours(), real.split(10))(real.split(20))
        >>> round(scores["fid"], 4) == 0
        True
    """

    def __init__(
        self,
        extractor: nn.Module,
        reference: Iterable[Tensor],
        device: torch.device | str = "cpu",
        metrics: Sequence[Metric] = (),
    ) -> None:
        self.extractor = extractor.to(device).eval()
        self.device = device
        self.metrics = metrics
        self.reference, logits = self.extract(reference)
        self.real_score: float | None = None
        """Inception Score of the real images: about the best that generated ones can reach."""
        if logits is not None:
            self.real_score = inception_score(logits, min(10, len(logits)))[0]
        for metric in metrics:
            if metric.needs == "logits" and logits is None:
                raise UserError(
                    f"expected an extractor with class logits for {metric.name}, got one of "
                    "features alone: choose another --best-by, such as fid"
                )

    def extract(self, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Features [N, d] and logits [N, C], on the CPU, of batches of uint8 [B, 3, H, W]."""
        found = extract(self.extractor, batches, self.device)
        assert found.features is not None
        return found.features, found.logits

    def __call__(self, batches: Iterable[Tensor], splits: int = 10) -> dict[str, float]:
        """The scores of batches of generated images, by name."""
        features, logits = self.extract(batches)
        found: dict[str, float] = {}
        if logits is not None:
            found["inception_score"], found["inception_score_std"] = inception_score(logits, splits)
        kid, kid_std = kernel_distance(features, self.reference)
        found |= {
            "fid": frechet_distance(features, self.reference),
            "kid": kid,
            "kid_std": kid_std,
        }
        sets = FeatureSet(features, logits), FeatureSet(self.reference)
        return found | {m.name: m.value(*sets) for m in self.metrics if m.name not in found}
