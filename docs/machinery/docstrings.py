"""Docstrings for the site: what Sphinx's roles and directives say, in Markdown.

``help()`` and editors show docstrings as they are written; here, ``:func:`name``` becomes a link
and ``.. math::`` a formula.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

ROLE = re.compile(r":(\w+):`(~?)([^`]+)`")
MATH = re.compile(r"^( *)\.\. math::(.*)\n((?:(?:\1 +.*)?\n)*)", re.MULTILINE)
LITERAL = re.compile(r"::$", re.MULTILINE)
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)  # griffe's name of the section is plural


class Roles(griffe.Extension):
    """Rewrites the docstrings of a package when all of it has been read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite them."""
        rewrite(pkg, set())


def rewrite(thing: griffe.Object, seen: set[str]) -> None:
    """Rewrite the docstrings of an object and of what it has."""
    if thing.path in seen:
        return
    seen.add(thing.path)
    if thing.docstring:
        thing.docstring.value = as_markdown(thing.docstring.value, thing)
    for member in thing.members.values():
        if not member.is_alias:
            rewrite(member, seen)


def as_markdown(text: str, owner: griffe.Object) -> str:
    """A docstring's text with its formulas between dollars and its references as links.

    A reference to what the site does not show stays a name.
    """

    def formula(match: re.Match[str]) -> str:
        indent, first, rest = match.groups()
        tex = textwrap.dedent(first.strip() + "\n" + textwrap.dedent(rest)).strip()
        lines = ["$$", *tex.splitlines(), "$$"]
        return "\n".join(indent + line for line in lines) + "\n\n"

    def role(match: re.Match[str]) -> str:
        kind, short, target = match.groups()
        if kind == "math":
            return f"${target}$"
        shown = target.rpartition(".")[2] if short else target
        path = resolved(target, owner)
        return f'<autoref identifier="{path}" optional>`{shown}`</autoref>'

    text = ROLE.sub(role, MATH.sub(formula, text + "\n"))
    return EXAMPLE.sub("Examples:", LITERAL.sub(":", text)).strip()


def resolved(name: str, owner: griffe.Object) -> str:
    """The dotted path of what a docstring calls ``name``."""
    scope: griffe.Object | None = owner
    while scope is not None:
        if name.partition(".")[0] in scope.all_members:
            return f"{scope.path}.{name}"
        scope = scope.parent
    return name
