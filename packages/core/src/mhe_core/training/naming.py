"""Which regularizer a name means, however it is spelled."""

from __future__ import annotations

from mhe_core import list_regularizers

__all__ = ["CORE", "own_name"]

CORE = "mhe-core"


def own_name(regularizer: str) -> str | None:
    """The plain name of one of core's regularizers, also of ``mhe-core:mhe``; else None.

    What was published for a regularizer belongs to core's, and to no third party's of like name.

    Example:
        >>> own_name("half_mhe"), own_name("mhe-core:half_mhe"), own_name("elsewhere:half_mhe")
        ('half_mhe', 'half_mhe', None)
    """
    distribution, _, name = regularizer.rpartition(":")
    own = {info.name for info in list_regularizers() if info.distribution == CORE}
    return name if distribution in ("", CORE) and name in own else None
