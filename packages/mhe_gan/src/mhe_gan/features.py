"""What an extractor finds in a set of images, computed once and kept in a file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from mhe_core.errors import UserError
from mhe_core.training.files import replacing
from torch import Tensor, nn

from mhe_gan.traps import Appearance

__all__ = ["FeatureSet", "StatisticsError", "extract"]


class StatisticsError(UserError):
    """A file of statistics that can't be used; the message says why."""


@dataclass(frozen=True)
class FeatureSet:
    """Features and logits of a set of images, or where no more is known, their mean and covariance.

    Attributes:
        features: [N, d], float32 on the CPU.
        logits: [N, C]; None where the extractor has none.
        moments: mean [d] and covariance [d, d], float64, where the features themselves are not
            known.
        extractor: what they are features of.
        weights: digest of that extractor's tensors, where it is known.
        appearance: what the images looked like, where it is known.
    """

    features: Tensor | None
    logits: Tensor | None = None
    moments: tuple[np.ndarray, np.ndarray] | None = None
    extractor: str | None = None
    weights: str | None = None
    appearance: Appearance | None = None

    @property
    def num_images(self) -> int | None:
        """N, where it is known."""
        rows = self.features if self.features is not None else self.logits
        return None if rows is None else len(rows)

    @property
    def dim(self) -> int:
        """d, the features' dimension."""
        if self.features is not None:
            return self.features.shape[1]
        if self.moments is None:
            raise StatisticsError("expected features or their moments, got neither")
        return len(self.moments[0])

    @cached_property
    def gaussian(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [d] and covariance [d, d] of the features, float64, as FID takes them."""
        if self.moments is not None:
            return self.moments
        if self.features is None or len(self.features) < 2:
            raise StatisticsError(
                f"expected features of at least two images, got {self.num_images}"
            )
        x = self.features.double().numpy()
        return x.mean(0), np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1])

    def subset(self, num_images: int, seed: int) -> FeatureSet:
        """That many of the images, drawn by the seed; their appearance is that of all.

        Raises:
            StatisticsError: if there are fewer, or no more is known than the moments.
        """
        if self.num_images is None or not 0 < num_images <= self.num_images:
            raise StatisticsError(f"expected at least {num_images} images, got {self.num_images}")
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(self.num_images, generator=generator)[:num_images].sort().values
        features, logits = (None if x is None else x[rows] for x in (self.features, self.logits))
        return replace(self, features=features, logits=logits)

    def save(self, file: Path) -> None:
        """Write an .npz that :meth:`load` reads; mean and covariance go by ``mu`` and ``sigma``.

        Those are the names of the original program's files, and so its readers take this one.
        """
        mu, sigma = self.gaussian
        arrays = {"mu": mu, "sigma": sigma, "extractor": np.array(self.extractor or "")}
        if self.weights is not None:
            arrays["weights"] = np.array(self.weights)
        if self.appearance is not None:
            arrays["appearance"] = np.array(json.dumps(self.appearance.plain()))
        for name, rows in (("features", self.features), ("logits", self.logits)):
            if rows is not None:
                arrays[name] = rows.numpy()
        with replacing(file, "wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]  # no array is named allow_pickle

    @classmethod
    def load(cls, file: Path) -> FeatureSet:
        """Read statistics: our own, or another program's ``mu`` and ``sigma``.

        Raises:
            StatisticsError: if the file holds neither, or what it holds does not fit together.
        """
        try:
            with np.load(file, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise StatisticsError(f"cannot read statistics from {file}: {error}") from error
        if strangers := [name for name, x in arrays.items() if not isinstance(x, np.ndarray)]:
            raise StatisticsError(f"expected arrays in {file}, got {', '.join(strangers)}")
        extractor, weights = (str(arrays.get(k, "")) or None for k in ("extractor", "weights"))
        try:
            looks = arrays.get("appearance")
            appearance = None if looks is None else Appearance.of_plain(json.loads(str(looks)))
        except (ValueError, KeyError, TypeError) as error:
            raise StatisticsError(
                f"cannot read what the images of {file} looked like: {error}"
            ) from error
        for name in ("features", "logits", "mu", "sigma"):
            if name in arrays:
                check_finite(arrays[name], name, file)
        tensors = {
            name: torch.from_numpy(arrays[name].astype(np.float32))
            for name in ("features", "logits")
            if name in arrays
        }
        if "features" in tensors:
            shapes = {name: list(rows.shape) for name, rows in tensors.items()}
            if any(len(s) != 2 or s[0] != shapes["features"][0] for s in shapes.values()):
                found = " and ".join(f"{name} {shape}" for name, shape in shapes.items())
                raise StatisticsError(
                    f"expected features [N, d] and logits [N, C] in {file}, got {found}"
                )
            logits = tensors.get("logits")
            return cls(tensors["features"], logits, None, extractor, weights, appearance)
        if not {"mu", "sigma"} <= arrays.keys():
            found = ", ".join(f"{k} {v.dtype} {list(v.shape)}" for k, v in sorted(arrays.items()))
            raise StatisticsError(
                f"expected images as uint8 [N, h, w, 3], features, or mu and sigma in {file}, got "
                f"{found or 'nothing'}"
            )
        mu, sigma = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise StatisticsError(
                f"expected mu [d] and sigma [d, d] in {file}, got {mu.shape} and {sigma.shape}"
            )
        return cls(None, None, (mu, sigma), extractor, weights, appearance)


def check_finite(array: np.ndarray, name: str, file: Path) -> None:
    """Raise a StatisticsError for what is no floating-point number, or not a finite one."""
    if array.dtype.kind != "f":
        raise StatisticsError(
            f"expected {name} as floating-point numbers in {file}, got {array.dtype}"
        )
    if not np.isfinite(array).all():
        raise StatisticsError(f"expected finite numbers in {name} of {file}, got others")


@torch.no_grad()
def extract(
    extractor: nn.Module,
    batches: Iterable[Tensor],
    device: torch.device | str = "cpu",
    name: str | None = None,
) -> FeatureSet:
    """Features and logits of batches of images, batch by batch.

    Args:
        extractor: maps uint8 images [B, 3, h, w] to their features [B, d], or to features and
            class logits [B, C].
        batches: of uint8 images.
        device: where the extractor is.
        name: of the extractor.

    Raises:
        TypeError: if images are not uint8 [B, 3, h, w].
        ValueError: if there are no images.

    Example:
        >>> class Mean(nn.Module):
        ...     def forward(self, images):
        ...         return images.float().mean((2, 3))
        >>> found = extract(Mean(), [torch.zeros(4, 3, 8, 8, dtype=torch.uint8)])
        >>> found.num_images, found.dim, found.logits
        (4, 3, None)
    """
    parts: list[list[Tensor]] = []
    for images in batches:
        if images.dtype != torch.uint8 or images.ndim != 4:
            got = f"{images.dtype} {list(images.shape)}"
            raise TypeError(f"expected images as uint8 [B, 3, H, W], got {got}")
        found = extractor(images.to(device))
        found = (found,) if isinstance(found, Tensor) else found
        parts.append([x.float().cpu() for x in found[:2]])
    if not parts:
        raise UserError("expected images to extract features from, got none")
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return FeatureSet(columns[0], columns[1] if columns[1:] else None, extractor=name)
