"""The images of a classification run."""

from __future__ import annotations

from dataclasses import dataclass

from mhe_core.training.images import DataError, ImageSet, load_images

from mhe_classification.config import ClassificationConfig

__all__ = ["Splits", "load_splits"]


@dataclass(frozen=True)
class Splits:
    """Training and test images, and those held out of training, if any."""

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet


def load_splits(config: ClassificationConfig) -> Splits:
    """Load and check all images before training starts.

    Raises:
        DataError: if the images cannot be trained on; names the file or folder.
    """
    size = None if config.image_size is None else (config.image_size, config.image_size)
    train, test = (
        load_images(
            config.data, split, size=size, data_dir=config.data_dir, download=config.download
        )
        for split in ("train", "test")
    )
    if train.size[0] != train.size[1]:
        raise DataError(
            f"expected square images, the first of {config.data} is {train.size[0]}×"
            f"{train.size[1]}: give --image-size"
        )
    validation = None
    if config.validation_fraction:
        train, validation = train.split(config.validation_fraction)
        if len(validation) == 0:
            raise DataError(
                f"--validation-fraction {config.validation_fraction} of {len(train)} images is none"
            )
    return Splits(train, validation, test)
