"""The one style of all plots; needs the extra ``mhe-core[plots]``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mhe_core.errors import UserError

__all__ = ["STYLE", "drawing"]

#: For ``matplotlib.pyplot.rcParams.update``, in notebooks and programs of one's own.
STYLE: dict[str, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "savefig.dpi": 110,
}


@contextmanager
def drawing(path: str | Path, width: float, height: float) -> Iterator[Any]:
    """A figure in this style, which is written when all is drawn; it needs no display.

    Args:
        path: the picture to write; its suffix decides the format.
        width: in inches.
        height: in inches.

    Yields:
        A ``matplotlib.figure.Figure`` without axes.

    Raises:
        UserError: if matplotlib is not installed or does not write such files.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "line.png")
        >>> with drawing(path, 4, 3) as figure:
        ...     lines = figure.subplots().plot([1, 2, 4])
        >>> path.exists()
        True
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install 'mhe-core[plots]'") from error
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        if Path(path).suffix.lstrip(".").lower() not in figure.canvas.get_supported_filetypes():
            known = ", ".join(sorted(figure.canvas.get_supported_filetypes()))
            raise UserError(f"expected a picture that ends with one of {known}, got {path}")
        yield figure
        figure.savefig(path)
