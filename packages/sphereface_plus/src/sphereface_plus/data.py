"""The faces of a training run: people to train on, and unseen people to verify."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from mhe_core.training.images import DataError, ImageSet, load_images

from sphereface_plus.config import FaceConfig
from sphereface_plus.pair_files import read_pairs
from sphereface_plus.pairs import PairSet, check_pairs, draw_pairs, find_pairs
from sphereface_plus.people import describe, load_people

__all__ = ["FaceSets", "load_faces"]

logger = logging.getLogger(__name__)

UNSEEN_DIGITS = 3  # 7, 8 and 9 play the people whom training has not seen


@dataclass(frozen=True)
class FaceSets:
    """Training images, pairs of people held out of them, and pairs for the figures reported."""

    train: ImageSet
    validation: PairSet | None
    test: PairSet | None


def load_faces(config: FaceConfig) -> FaceSets:
    """Load and check all images before training starts.

    Raises:
        DataError: if the images cannot be trained on; names the file or folder.
        FileNotFoundError: if the test pairs or their images are missing.
    """
    test = validation = None
    if config.data == "digits":
        train, test = digits(config.size)
    else:
        train = load_people(config.data, config.size)
    if config.test_data is not None and config.pairs is not None:
        test = find_pairs(read_pairs(config.pairs), config.test_data, train.size)
        check_pairs(test)
    if config.validation_people:
        train, held_out = split_people(train, config.validation_people, seed=0)
        validation = draw_pairs(held_out)
    logger.info("to train on: %s", describe(train))
    if len(train.classes) < 2:
        raise DataError(f"expected at least 2 people to train on, got {len(train.classes)}")
    return FaceSets(train, validation, test)


def digits(size: tuple[int, int] | None) -> tuple[ImageSet, PairSet]:
    """Images of the digits 0 to 6, and pairs of 7, 8 and 9."""
    train, unseen = split_people(load_images("digits", "train", size=size), UNSEEN_DIGITS)
    return train, draw_pairs(unseen, per_fold=60)


def split_people(
    images: ImageSet, held_out: int, seed: int | None = None
) -> tuple[ImageSet, ImageSet]:
    """The images without, and the images of, some people: the last ones, or drawn by a seed."""
    people = len(images.classes)
    if not 0 < held_out <= people - 2:
        raise DataError(
            f"expected to hold out from 1 to {people - 2} of {people} people, got {held_out}"
        )
    order = torch.arange(people)
    if seed is not None:
        order = torch.randperm(people, generator=torch.Generator().manual_seed(seed))
    kept, drawn = order[:-held_out].sort().values, order[-held_out:].sort().values
    return of_people(images, kept), of_people(images, drawn)


def of_people(images: ImageSet, people: torch.Tensor) -> ImageSet:
    """The images of some people ``[C]``, relabelled from 0."""
    new_label = torch.full((len(images.classes),), -1)
    new_label[people] = torch.arange(len(people))
    labels = new_label[images.labels]
    kept = (labels >= 0).nonzero().flatten()
    names = tuple(images.classes[i] for i in people.tolist())
    return replace(images.subset(kept), labels=labels[kept], classes=names)
