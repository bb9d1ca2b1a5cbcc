"""The network that a run starts with: random, timm's pretrained, or another run's or file's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from mhe_core.errors import UserError
from mhe_core.network import find_output_layers
from mhe_core.training.checkpoint import load_checkpoint
from mhe_core.training.seeding import seed_all
from mhe_core.training.wrappers import load_state, state_of
from timm.models import clean_state_dict, load_state_dict
from torch import Tensor, nn

from mhe_classification.config import ClassificationConfig
from mhe_classification.models import build_model

__all__ = ["new_model", "start_from"]

logger = logging.getLogger(__name__)


def new_model(config: ClassificationConfig, classes: Sequence[str], image_size: int) -> nn.Module:
    """The network as a run begins with it.

    What is not given by ``--pretrained`` or ``--init`` is random, by the run's seed.

    Raises:
        UserError: if the network or its weights cannot be had as the flags say.
    """
    seed_all(config.seed)
    model = build_model(
        config.model,
        len(classes),
        image_size,
        config.width,
        pretrained=config.pretrained,
        **config.network_options(),
    )
    if config.init is not None:
        start_from(config.init, model, classes)
    return model


def start_from(source: Path, model: nn.Module, classes: Sequence[str]) -> None:
    """Load the weights of a run (its average's, if it has one) or of a file.

    The output layer is left as it is where it is of other classes; that is logged. All else must
    fit.

    Args:
        source: a run directory, or a file that timm reads: safetensors, or a state dict by
            ``torch.save``, alone or under ``state_dict`` or ``model``.
        model: the network.
        classes: those that it is to tell apart.

    Raises:
        FileNotFoundError: if there is no such run or file.
        UserError: if the weights do not fit; names the first that do not.
    """
    saved, known = _weights_of(source)
    own = state_of(model)
    outputs = [f"{name}." for name in find_output_layers(model)]
    of_output = {name for name in own if name.startswith(tuple(outputs))}
    others = {name for name in of_output if name in saved and saved[name].shape != own[name].shape}
    if others or (known is not None and list(known) != list(classes)):
        logger.info("%s: its output layer is of other classes, ours begins at random", source)
        saved = {**saved, **{name: own[name] for name in of_output}}
    unfit = [
        name
        for name in sorted({*own, *saved})
        if name not in own or name not in saved or saved[name].shape != own[name].shape
    ]
    if unfit:
        raise UserError(
            f"expected --init with the weights of {type(model).__name__} as this run has it, got "
            f"{source}, where {len(unfit)} are missing, not known or of another shape: "
            f"{', '.join(unfit[:5])}{', …' if len(unfit) > 5 else ''}"
        )
    load_state(model, saved)


def _weights_of(source: Path) -> tuple[Mapping[str, Tensor], list[str] | None]:
    """Weights by name, and the classes where it is known of which they are."""
    source = Path(source)
    if source.is_dir():
        content = load_checkpoint(source / "checkpoints" / "best")
        state = content["state"]
        weights = state.get("ema", state["model"])  # an average may be saved through its wrapper
        return clean_state_dict(weights), content["facts"]["classes"]
    if not source.is_file():
        raise FileNotFoundError(f"expected --init as a run directory or a file, got {source}")
    try:
        return load_state_dict(str(source)), None
    except Exception as error:  # torch and safetensors raise many types for other files
        raise UserError(f"--init {source} holds no weights that are known: {error}") from error
