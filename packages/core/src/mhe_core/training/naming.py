"""Which regularizer a name means, however it is spelled."""

from __future__ import annotations

from mhe_core import list_regularizers
from mhe_core.registry import RegularizerNameError, canonical_name

__all__ = ["CORE", "asked_for", "own_name"]

CORE = "mhe-core"


def asked_for(own: str, distribution: str = CORE) -> str:
    """How to ask for a distribution's regularizer: with its name where others claim this one, too.

    For defaults, which have to mean core's whatever else is installed.

    Example:
        >>> asked_for("half_mhe")
        'half_mhe'
    """
    claims = [info for info in list_regularizers() if info.name == own]
    return own if len(claims) == 1 else f"{distribution}:{own}"


def own_name(regularizer: str) -> str | None:
    """The plain name of one of core's regularizers, also of ``mhe-core:mhe``; else None.

    What was published for a regularizer belongs to core's, and to no third party's of like name.

    Example:
        >>> own_name("half_mhe"), own_name("mhe-core:half_mhe"), own_name("elsewhere:half_mhe")
        ('half_mhe', 'half_mhe', None)
    """
    try:
        name = canonical_name(regularizer)
    except RegularizerNameError:  # unknown, or claimed by another distribution as well
        return None
    return None if ":" in name else name
