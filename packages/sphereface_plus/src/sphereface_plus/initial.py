"""The weights that a run starts from: another run's, or a published file's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from mhe_core.diagnostics.weights import load_state_dict
from mhe_core.errors import UserError
from mhe_core.training.checkpoint import CheckpointError, load_checkpoint
from torch import Tensor

from sphereface_plus.backbones import last_layer
from sphereface_plus.embedding import FaceModel

__all__ = ["start_from"]

logger = logging.getLogger(__name__)


def start_from(source: Path, model: FaceModel, name: str, classes: Sequence[str]) -> None:
    """Load the weights of a run, or those of the backbone from a file.

    Args:
        source: a run directory or a file.
        model: takes the weights.
        name: the backbone's, for what is left out of published files.
        classes: the people to train on.

    Raises:
        FileNotFoundError: if there is no such run or file.
        CheckpointError: if the run's network is another one.
        UserError: if the file's is.
    """
    if Path(source).is_dir():
        start_from_run(source, model, classes)
    else:
        start_from_file(source, model, name)


def start_from_run(run: Path, model: FaceModel, classes: Sequence[str]) -> None:
    """Load a run's backbone, and its class vectors if its people and its head are the same.

    With the class vectors comes the head's state, so that λ goes on from where it was, as
    published; new class vectors start with a large λ.
    """
    file = Path(run) / "checkpoints" / "best"
    content = load_checkpoint(file)
    saved, own = content["state"]["model"], model.state_dict()
    of_head = {key for key in own if key.startswith("head.")}
    other = None
    if content["facts"]["classes"] != list(classes):
        other = "other people"
    elif of_head != {key for key in saved if key.startswith("head.")}:
        other = "another head"
    if other is not None:
        logger.info(
            "%s was trained with %s: its class vectors are not taken over, and the head's state, "
            "such as λ, starts anew",
            run,
            other,
        )
        saved = {key: value for key, value in saved.items() if not key.startswith("head.")}
        saved = {**saved, **{key: own[key] for key in of_head}}
    try:
        model.load_state_dict(saved)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {file} do not fit this model: {error}") from error


def start_from_file(file: Path, model: FaceModel, name: str) -> None:
    """Load the backbone's weights, also under a common prefix; logs what else the file has."""
    weights = load_state_dict(file)
    own = model.backbone.state_dict()
    prefix = common_prefix(weights, own)
    last = last_layer(name)
    taken, new, unfit = {}, [], []
    for key, value in own.items():
        found = weights.get(prefix + key)
        if found is not None and found.shape == value.shape:
            taken[key] = found
        elif last is not None and key.startswith(f"{last}."):
            new.append(key)
        else:
            got = "none" if found is None else str(list(found.shape))
            unfit.append(f"{key} as {list(value.shape)}, got {got}")
    if unfit:
        raise UserError(
            f"--init {file}: expected the weights of {name}; {len(unfit)} of {len(own)} do not "
            f"fit: {'; '.join(unfit[:3])}{'; …' if len(unfit) > 3 else ''}"
        )
    left_out = sorted(set(weights) - {prefix + key for key in taken})
    if new:
        logger.info("%s: new weights for the embedding, %s", file, ", ".join(new))
    if left_out:
        logger.info("%s: left out: %s", file, ", ".join(left_out))
    model.backbone.load_state_dict({**own, **taken})


def common_prefix(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What stands before the backbone's names in the file: nothing, ``module.``, ….

    The one under which most names are found.
    """
    first = next(iter(own))
    prefixes = {key.removesuffix(first) for key in weights if key.endswith(first)} | {""}
    return max(sorted(prefixes), key=lambda prefix: sum(prefix + key in weights for key in own))
