"""What scores are computed from: networks that map images to features and class logits.

An *extractor* is a module that maps uint8 images [B, 3, h, w] to features [B, d] and class logits
[B, C], or to features alone. torch-fidelity has InceptionV3, DINOv2 and CLIP. Others come from
packages that name them by an entry point in the group ``mhe_gan.feature_extractors``: a function
that takes a path, such as the run directory of a classifier, and returns the extractor; or, where
an extractor needs no path, one without arguments. Applications do not import each other.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import torch
from mhe_core.entry_points import (
    PluginError,
    described,
    distribution_of,
    find,
    installed,
    load,
    matching,
)
from mhe_core.errors import UserError
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

__all__ = ["describe_extractor", "extractor_digest", "is_downloaded", "load_extractor"]

GROUP = "mhe_gan.feature_extractors"
KIND = "feature extractor"  # in messages
INCEPTION = "inception"
SHORT_NAMES = {"dinov2": "dinov2-vit-b-14", "clip": "clip-vit-b-32"}
FIDELITY_NAMES = [
    name for name in FEATURE_EXTRACTORS_REGISTRY if name.startswith(("dinov2", "clip"))
]


def load_extractor(run: Path | str | None = None, weights: Path | None = None) -> nn.Module:
    """The extractor that the flags ask for.

    Args:
        run: run directory of a classifier trained by mhe-classification; or ``inception`` (also
            for None), ``dinov2``, ``clip`` or torch-fidelity's longer names of such; or the name
            of an entry point, ``NAME`` or ``NAME:PATH``.
        weights: file of Inception's weights, as torch-fidelity distributes it; None: downloaded.

    Raises:
        FileNotFoundError: if ``run`` or ``weights`` does not exist.
        ConnectionError: if the weights can't be downloaded; says how to give the file.
        UserError: if no installed package reads a classifier's run.
        ValueError: if the file does not hold those weights.
    """
    name = INCEPTION if run is None else str(run)
    if name in (INCEPTION, *SHORT_NAMES, *FIDELITY_NAMES):
        return load_inception(weights) if name == INCEPTION else load_other(name, weights)
    if weights is not None:
        raise UserError("expected --feature-extractor or --weights, got both")
    offered = [(distribution_of(point), point.name, point) for point in installed(GROUP)]
    parts = name.split(":")
    for cut in range(len(parts), 0, -1):  # NAME, distribution:NAME, or either with :PATH
        entry_name, argument = ":".join(parts[:cut]), ":".join(parts[cut:])
        if matching(entry_name, offered):
            return call(find(entry_name, GROUP, KIND), argument)
    return load_classifier(Path(name))


def describe_extractor(run: Path | str | None) -> str:
    """What to call the extractor in a report."""
    return "InceptionV3" if run is None or str(run) == INCEPTION else str(run)


def extractor_digest(extractor: nn.Module, name: str) -> str:
    """What tells an extractor from others, wherever its weights come from.

    Of its class and its tensors; where it has none, of its name.
    """
    kind = type(extractor)
    known = hashlib.sha256(f"{kind.__module__}.{kind.__qualname__}".encode())
    tensors = {k: v for k, v in extractor.state_dict().items() if isinstance(v, Tensor)}
    for key, value in sorted(tensors.items()):
        known.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        known.update(value.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    if not tensors:
        known.update(name.encode())
    return known.hexdigest()


def is_downloaded(run: Path | str | None, weights: Path | None) -> bool:
    """Whether the weights of what the flags ask for come from elsewhere."""
    name = INCEPTION if run is None else str(run)
    return weights is None and name in (INCEPTION, *SHORT_NAMES, *FIDELITY_NAMES)


def call(entry: EntryPoint, argument: str) -> nn.Module:
    """What an entry point's function makes, given a path if there is one."""
    factory = load(entry, KIND)
    if not argument and not accepts(factory):
        raise PluginError(
            f"{described(entry, KIND)}: expected a path for it, as {entry.name}:PATH, got none"
        )
    if argument and not accepts(factory, Path(argument)):
        raise PluginError(f"{described(entry, KIND)}: it takes no path, got {argument!r}")
    extractor = factory(Path(argument)) if argument else factory()
    if not isinstance(extractor, nn.Module):
        got = type(extractor).__name__
        raise PluginError(
            f"{described(entry, KIND)}: expected a torch.nn.Module from it, got {got}"
        )
    return extractor


def accepts(factory: Callable[..., nn.Module], *arguments: Path) -> bool:
    """Whether an entry point's function can be called so."""
    try:
        inspect.signature(factory).bind(*arguments)
    except TypeError:
        return False
    return True


def load_inception(weights: Path | None) -> nn.Module:
    """torch-fidelity's InceptionV3, with the features and logits that its scores are made of."""
    if weights is not None:
        check_weights(weights)
    try:
        return FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=None if weights is None else str(weights),
        )
    except RuntimeError as error:
        raise UserError(f"{weights} are not torch-fidelity's InceptionV3: {error}") from error
    except OSError as error:  # urllib's errors are OSErrors
        raise ConnectionError(
            f"cannot download Inception's weights ({error}): give the file of torch-fidelity, "
            "weights-inception-2015-12-05-6726825d.pth, with --weights PATH, or score with a "
            "classifier of your own with --feature-extractor RUN"
        ) from error


def load_classifier(run: Path) -> nn.Module:
    """The classifier of a run directory, by the package that wrote it."""
    if not run.is_dir():
        raise FileNotFoundError(f"expected the run directory of a classifier, found none at {run}")
    readers = [entry for entry in installed(GROUP) if not accepts(load(entry, KIND))]
    if not readers:
        raise UserError(
            f"expected an installed package to read classifiers (an entry point in {GROUP}), found "
            "none: pip install mhe-classification"
        )
    if len(readers) > 1:
        found = " and ".join(sorted(described(entry, KIND) for entry in readers))
        raise UserError(
            f"expected one installed package to read classifiers, got {found}: pick one by writing "
            f"NAME:{run}"
        )
    return call(readers[0], str(run))


class FeaturesAlone(nn.Module):
    """An extractor of torch-fidelity's that has features and no class logits."""

    def __init__(self, extractor: FeatureExtractorBase) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, d] of uint8 images [B, 3, h, w]."""
        return self.extractor(images)[0]


def load_other(name: str, weights: Path | None) -> nn.Module:
    """torch-fidelity's DINOv2 or CLIP."""
    if weights is not None:
        raise UserError(
            f"expected --weights with inception only, got {name}, whose weights torch.hub keeps in "
            f"{torch.hub.get_dir()}: they come as programs, not as tensors"
        )
    full = SHORT_NAMES.get(name, name)
    kind = FEATURE_EXTRACTORS_REGISTRY[full]
    try:
        return FeaturesAlone(kind(full, [kind.get_provided_features_list()[0]]))
    except OSError as error:  # urllib's errors are OSErrors
        raise ConnectionError(
            f"cannot download the weights of {full} ({error}): put them where torch.hub keeps "
            f"them, {torch.hub.get_dir()}"
        ) from error


def check_weights(weights: Path) -> None:
    """Raise unless there is a file of tensors: torch-fidelity would run code in it."""
    if not Path(weights).is_file():
        raise FileNotFoundError(f"expected Inception weights at {weights}, found no file")
    try:
        found = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{weights} does not hold tensors only: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"expected tensors by name in {weights}, got {type(found).__name__}")
