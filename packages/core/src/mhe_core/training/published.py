"""The settings that a regularizer was published with, as far as it says them."""

from __future__ import annotations

from typing import Any

from mhe_core.registry import create_regularizer, list_regularizers

__all__ = ["all_regularizers", "published_settings"]


def published_settings(name: str) -> dict[str, Any]:
    """Settings of a run in which a regularizer has the weights that it was published with.

    A regularizer says them by the attributes ``published_weight``, for hidden layers,
    ``published_output_weight``, for the output layer, which then has this regularizer, too, and
    ``published_output_options``, the output layer's hyperparameters.

    Args:
        name: of the regularizer, or ``"none"``.

    Returns:
        Some of ``hidden_weight``, ``output_weight``, ``output_regularizer``, ``output_options``;
        nothing where the regularizer does not say.
    """
    if name == "none":
        return {}
    regularizer = create_regularizer(name, 4, 4)
    hidden = getattr(regularizer, "published_weight", None)
    output = getattr(regularizer, "published_output_weight", None)
    settings: dict[str, Any] = {} if hidden is None else {"hidden_weight": hidden}
    if output is not None:
        options = dict(getattr(regularizer, "published_output_options", {}))
        settings |= {
            "output_regularizer": name,
            "output_weight": output,
            "output_options": options,
        }
    return settings


def all_regularizers() -> list[str]:
    """The names of all that are installed, with the distribution where two claim one name."""
    infos = list_regularizers()
    names = [info.name for info in infos]
    return [
        info.name if names.count(info.name) == 1 else f"{info.distribution}:{info.name}"
        for info in infos
    ]
