"""``mhe-gan test``: Inception Score, FID and KID of a trained generator."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mhe_core.training.batches import whole_set
from mhe_core.training.command import parse, run_command
from mhe_core.training.files import write_atomically
from mhe_core.training.images import ImageSet
from mhe_core.training.processes import make_accelerator
from mhe_core.training.run import saved_config
from torch import nn

from mhe_gan.config import GANConfig, ScoreConfig
from mhe_gan.data import as_generated, load_split
from mhe_gan.extractors import describe_extractor, extractor_digest, load_extractor
from mhe_gan.metrics import find_metric
from mhe_gan.sample import (
    class_names,
    classes_as_trained,
    load_generator,
    scored_samples,
)
from mhe_gan.scores import Scorer

__all__ = ["TestConfig", "build_scorer", "described", "main", "score_run", "test"]


@dataclass(kw_only=True)
class TestConfig(ScoreConfig):
    """Score a trained generator: its final weights and, apart, those chosen by a score.

    Attributes:
        run: the run directory.
        seed: of the noise.
        average: use the moving average of the generator's weights, if the run has one.
        device: auto, cpu, cuda, cuda:1, ….
    """

    __test__ = False  # not a test case

    run: Path
    seed: int = 0
    average: bool = True
    device: str = "auto"


def build_scorer(
    config: GANConfig,
    device: torch.device,
    scores: ScoreConfig | None = None,
    load: Callable[[GANConfig], ImageSet] = load_split,
) -> Scorer:
    """A scorer against the real images of a run, in grey where its samples are.

    Args:
        config: the run's settings.
        device: where features are computed.
        scores: how to score; default: as the run's own settings say.
        load: reads the training images, if they are those that are compared with.
    """
    scores = scores or config
    extractor = load_extractor(scores.feature_extractor, scores.weights)
    of_training = scores.reference == "train"
    real = load(config) if of_training else load_split(config, scores.reference)
    batches = whole_set(real, 100, workers=config.workers, device=device)
    metrics = [find_metric(config.best_by)] if config.score_every is not None else []
    reference = (as_generated(pixels, config.channels) for pixels, _ in batches)
    return Scorer(extractor, reference, device=device, metrics=metrics)


def test(config: TestConfig) -> dict[str, Any]:
    """Score a run's final generator and its best one, against the images it was trained on.

    Returns:
        What :func:`score_run` returns.
    """
    device = make_accelerator(config.device).device
    return score_run(config, build_scorer(run_settings(config), device, config))


def score_run(config: TestConfig, scorer: Scorer) -> dict[str, Any]:
    """Score a run's final generator and its best one; writes test.json into the run directory.

    Returns:
        The scores of ``final`` and, if a score chose checkpoints/best while it trained, of
        ``best``, each with its step; what they were made with; the real images' own score. The
        samples' classes are as frequent as those of the training images.
    """
    settings = run_settings(config)
    report = described(config, scorer)
    chosen = {"final": "last"}
    if settings.score_every is not None:
        chosen["best"] = "best"
        report["best_chosen_by"] = f"{settings.best_by} while it trained"
    for name, checkpoint in chosen.items():
        generator, _, step = load_generator(config.run, checkpoint, config.average)
        report["samples_of_class"] = samples_of_class(generator, config.num_samples)
        samples = scored_samples(generator.to(scorer.device), config.num_samples, config.seed)
        report[name] = {"step": step, **scorer(samples)}
    write_atomically(Path(config.run) / "test.json", json.dumps(report, indent=2) + "\n")
    return report


def samples_of_class(generator: nn.Module, num: int) -> dict[str, int] | None:
    """How many samples are of each class, by its name; None without conditioning."""
    classes = classes_as_trained(generator, num)
    if classes is None:
        return None
    names = class_names(generator)
    return dict(zip(names, classes.bincount(minlength=len(names)).tolist(), strict=True))


def run_settings(config: TestConfig) -> GANConfig:
    """The settings that the run was started with."""
    return saved_config(GANConfig, config.run)


def described(config: TestConfig, scorer: Scorer) -> dict[str, Any]:
    """What a report's scores were made with."""
    name = describe_extractor(config.feature_extractor)
    grey = ", grey" if run_settings(config).channels == 1 else ""
    return {
        "num_samples": config.num_samples,
        "seed": config.seed,
        "average": config.average,
        "extractor": name,
        "weights": extractor_digest(scorer.extractor, name),
        "reference": f"{len(scorer.reference)} {config.reference} images{grey}",
        "real_inception_score": scorer.real_score,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(TestConfig, arguments, "mhe-gan test", positional=("run",))
    print(json.dumps(test(config), indent=2))


if __name__ == "__main__":
    sys.exit(run_command("mhe-gan test", main, sys.argv[1:]))
