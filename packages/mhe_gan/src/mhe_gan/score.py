"""``mhe-gan score``: any generated images against any real ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from mhe_core.errors import UserError
from mhe_core.training.command import parse, run_command
from mhe_core.training.compare import comma_separated
from mhe_core.training.processes import resolve_device
from torch import nn

from mhe_gan.extractors import (
    describe_extractor,
    extractor_digest,
    is_downloaded,
    load_extractor,
)
from mhe_gan.features import FeatureSet, extract
from mhe_gan.frechet import extrapolated_frechet
from mhe_gan.metrics import METRICS, NORMAL, Score, find_metric, measure
from mhe_gan.sources import ImageSource, open_source
from mhe_gan.traps import Appearance, unlike

__all__ = ["Report", "ScoreCommandConfig", "main", "score"]


@dataclass(kw_only=True)
class ScoreCommandConfig:
    """Score images: a folder, an .npz of images or of statistics, or the samples of a run.

    Attributes:
        images: what is scored.
        reference: real images to compare with, given in the same ways; default: none, which
            leaves the Inception Score.
        metrics: which, with commas between; default: all that can be measured.
        feature_extractor: inception, dinov2, clip, the run directory of a classifier trained by
            mhe-classification, or what an installed package offers, NAME or NAME:PATH.
        weights: file of Inception's weights; default: torch-fidelity downloads them.
        num_samples: take so many of each side, drawn by the seed; default: all, and 10,000 of a
            run.
        unequal: compare sides of unequal numbers, which most scores do not allow.
        unbiased: also FID extrapolated to endlessly many images.
        resamples: parts of the scored images, each of which is left out once for the intervals; 0
            for no intervals.
        seed: of samples, subsets and parts.
        save_statistics: a file.npz for the features of the scored images, which can then be given
            in place of the images.
        json: print JSON.
        batch_size: images at a time.
        device: auto, cpu, cuda, ….
    """

    images: str
    reference: str | None = None
    metrics: str | None = None
    feature_extractor: str | None = None
    weights: Path | None = None
    num_samples: int | None = None
    unequal: bool = False
    unbiased: bool = False
    resamples: int = 50
    seed: int = 0
    save_statistics: Path | None = None
    json: bool = False
    batch_size: int = 100
    device: str = "auto"

    def __post_init__(self) -> None:
        """Raise a ValueError for a setting out of range."""
        if self.num_samples is not None and self.num_samples < 2:
            raise UserError(f"expected --num-samples at least 2, got {self.num_samples}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"expected --seed from 0 to 2^63 − 1, got {self.seed}")
        if self.batch_size < 1 or self.resamples < 0:
            raise UserError(
                "expected --batch-size at least 1 and --resamples at least 0, got "
                f"{self.batch_size} and {self.resamples}"
            )


@dataclass(frozen=True)
class Side:
    """One side's features, and what there is to say of them."""

    features: FeatureSet
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        scores: each metric's value and 95 % interval, by name; ``fid_unbiased`` where asked for.
        num_images: how many images were scored, where it is known.
        num_reference: how many they were compared with, where it is known.
        extractor: of whose features.
        notes: what was left out and why, and what makes the comparison unfair.
    """

    scores: dict[str, Score]
    num_images: int | None
    num_reference: int | None
    extractor: str
    notes: list[str] = field(default_factory=list)

    def flat(self) -> dict[str, Any]:
        """Scores by name, each with its interval and number of images, for JSON."""
        count = {"num_images": self.num_images, "num_reference": self.num_reference}
        scores = {name: {**asdict(score), **count} for name, score in self.scores.items()}
        return {**scores, "extractor": self.extractor, "notes": self.notes}

    def table(self) -> str:
        """For people."""
        numbers = f"{shown(self.num_images)} images"
        if self.num_reference is not None:
            numbers += f" against {shown(self.num_reference)}"
        lines = [f"{numbers}, {self.extractor}"]
        for name, score in self.scores.items():
            interval = "" if score.low is None else f"  {score.low:.4g} to {score.high:.4g}"
            lines.append(f"  {name:16} {score.value:10.4f}{interval}")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def score(config: ScoreCommandConfig) -> Report:
    """Measure what the settings ask for.

    Raises:
        DataError: if images cannot be read, or there are too few.
        ValueError: if the two sides do not go together, or an asked-for metric cannot be measured.
    """
    asked = list(METRICS) if config.metrics is None else comma_separated(config.metrics)
    metrics = [find_metric(name) for name in asked]
    device = resolve_device(config.device)
    names = [config.images] if config.reference is None else [config.images, config.reference]
    opened = [
        open_source(
            name,
            num_images=config.num_samples,
            batch_size=config.batch_size,
            seed=config.seed,
            device=device,
        )
        for name in names
    ]
    check_numbers(opened, config)
    extractor = None
    of_images = any(isinstance(source, ImageSource) for source in opened)
    if of_images or not is_downloaded(config.feature_extractor, config.weights):
        extractor = load_extractor(config.feature_extractor, config.weights).to(device).eval()
    name = describe_extractor(config.feature_extractor)
    digest = None if extractor is None else extractor_digest(extractor, name)
    sides = [
        known_side(source, name, digest)
        if isinstance(source, FeatureSet)
        else read(source, extractor, name, digest, device)
        for source in opened
    ]
    check_weights([side.features for side in sides])
    ours, theirs = sides[0], sides[1] if sides[1:] else None
    if config.save_statistics is not None:
        ours.features.save(config.save_statistics)
    notes = [note for side in sides for note in side.notes] + warnings(ours, theirs)

    scores: dict[str, Score] = {}
    left_out: dict[str, list[str]] = {}  # the metrics' names by why
    real = ours.features if theirs is None else theirs.features
    for metric in metrics:
        why = metric.missing(ours.features, None if theirs is None else real)
        if why is None:
            scores[metric.name] = measure(
                metric, ours.features, real, config.resamples, config.seed
            )
        elif config.metrics is None:
            left_out.setdefault(why, []).append(metric.name)
        else:
            raise UserError(f"cannot measure {metric.name}: {why}")
    notes += [f"no {', '.join(names)}: {why}" for why, names in left_out.items()]
    if "inception_score" in scores and ours.features.logits is not None:
        count, classes = ours.features.logits.shape
        if count // 10 < 10 * classes:
            notes.append(
                f"{count // 10} images in each of ten splits, with {classes} classes: the "
                "Inception Score is too low; compare it with one of equally many images only"
            )
    if config.unbiased:
        if theirs is None:
            raise UserError("expected --reference with --unbiased, got none")
        fid = scores.get("fid") or measure(
            METRICS["fid"], ours.features, real, config.resamples, config.seed
        )
        scores["fid_unbiased"] = unbiased(ours.features, real, fid, config.seed)
        if (count := ours.features.num_images or 0) < 4 * ours.features.dim:
            notes.append(
                f"{count} images are few to extrapolate FID from, with {ours.features.dim} "
                f"dimensions of features: at least {4 * ours.features.dim} are wanted"
            )
    return Report(
        scores=scores,
        num_images=ours.features.num_images,
        num_reference=None if theirs is None else real.num_images,
        extractor=str(ours.features.extractor),
        notes=notes,
    )


def check_numbers(opened: Sequence[ImageSource | FeatureSet], config: ScoreCommandConfig) -> None:
    """Raise a ValueError for unequal numbers of images, unless they are wanted."""
    counts = [source.num_images for source in opened]
    if config.unequal or len(set(counts)) < 2:
        return
    if None in counts:
        raise UserError(
            f"cannot tell whether both sides have equally many images, got "
            f"{' and '.join(map(shown, counts))}, and FID changes with the number: take as many as "
            "the statistics were made of by --num-samples, and confirm it with --unequal"
        )
    fewest = min(count for count in counts if count is not None)
    raise UserError(
        f"expected equally many images on both sides, got {' and '.join(map(shown, counts))}, and "
        f"FID, KID, recall and coverage change with the number: take --num-samples {fewest} of "
        "each, or compare them as they are with --unequal"
    )


def known_side(features: FeatureSet, name: str, digest: str | None) -> Side:
    """A side of a file of statistics, if they are of the extractor that was asked for.

    They are told by its weights, or by its name where either side's are not known.
    """
    by_weights = None not in (features.weights, digest)
    if features.weights != digest if by_weights else features.extractor not in (None, name):
        other = features.extractor
        if other == name:
            raise UserError(
                f"expected statistics of {name} as it is now, got those of other weights: make "
                "them anew with --save-statistics"
            )
        raise UserError(
            f"expected statistics of {name}, got those of {other}: give it as --feature-extractor"
        )
    note = () if features.extractor else ("statistics that do not say what they are features of",)
    return Side(features, note)


def read(
    source: ImageSource,
    extractor: nn.Module | None,
    name: str,
    digest: str | None,
    device: torch.device,
) -> Side:
    """A side of images, whose features are computed."""
    assert extractor is not None
    appearance = Appearance(source.formats)
    features = extract(extractor, appearance.watch(source.batches()), device, name)
    return Side(replace(features, weights=digest, appearance=appearance), source.notes)


def check_weights(sides: Sequence[FeatureSet]) -> None:
    """Raise a UserError for features of extractors with different weights."""
    known = {side.weights: side.extractor for side in sides if side.weights is not None}
    if len(known) > 1:
        raise UserError(
            "expected statistics of one extractor on both sides, got those of "
            f"{' and '.join(map(str, known.values()))} with different weights"
        )


def warnings(ours: Side, theirs: Side | None) -> list[str]:
    """What makes the figures hard to trust."""
    if theirs is None:
        return []
    notes = []
    for side, name in ((ours, "scored"), (theirs, "reference")):
        count, dim = side.features.num_images, side.features.dim
        if count is not None and count <= dim:
            notes.append(
                f"{count} {name} images for {dim} dimensions of features: their covariance is "
                "singular, and FID says little"
            )
    if ours.features.dim != theirs.features.dim:
        dims = f"{ours.features.dim} and {theirs.features.dim}"
        raise UserError(f"expected features of one dimension on both sides, got {dims}")
    scored, real = ours.features.appearance, theirs.features.appearance
    if scored is not None and real is not None:
        notes += unlike(scored, real)
    return notes


def unbiased(ours: FeatureSet, real: FeatureSet, fid: Score, seed: int) -> Score:
    """The extrapolated FID; its interval has the line's error and the images' spread."""
    value, error = extrapolated_frechet(ours, real, seed)
    if fid.high is None:
        return Score(value, None, None)
    spread = (fid.high - fid.value) / NORMAL
    half = NORMAL * (error**2 + spread**2) ** 0.5
    return Score(value, value - half, value + half)


def shown(count: int | None) -> str:
    """A number of images."""
    return "an unknown number of" if count is None else f"{count:,}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(ScoreCommandConfig, arguments, "mhe-gan score", positional=("images",))
    report = score(config)
    print(json.dumps(report.flat(), indent=2) if config.json else report.table())


if __name__ == "__main__":
    sys.exit(run_command("mhe-gan score", main, sys.argv[1:]))
