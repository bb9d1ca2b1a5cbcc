"""Formulas as MathML, which browsers show by themselves: no script, and nothing from elsewhere."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What the extension arithmatex makes of $...$ and $$...$$.
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace each formula of a page; mkdocs calls this."""
    content = INLINE.sub(lambda match: mathml(match[1], "inline"), content)
    return BLOCK.sub(
        lambda match: f'<div class="formula">{mathml(match[1], "block")}</div>', content
    )


def mathml(tex: str, display: str) -> str:
    """One formula, as the browser takes it.

    Raises:
        ValueError: if it has a command that the converter does not know, and would print as it is.
    """
    converted = str(convert(html.unescape(tex).strip(), display=display))
    if unknown := re.search(r">(\\\w+)", converted):
        raise ValueError(f"no MathML for {unknown[1]}: {tex}")
    return converted
