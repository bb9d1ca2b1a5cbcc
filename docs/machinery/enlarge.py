"""Plots open by themselves when they are tapped: a telephone shows several panels too small."""

from __future__ import annotations

import re
from typing import Any

PLOT = re.compile(r'<img [^>]*src="([^"]+\.png)"[^>]*>')


def on_page_content(content: str, **_: Any) -> str:
    """Make each plot of a page a link to itself; mkdocs calls this."""
    return PLOT.sub(lambda match: f'<a href="{match[1]}">{match[0]}</a>', content)
