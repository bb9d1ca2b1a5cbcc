"""What READMEs and the site's pages print, for a test to run it.

A page's blocks run from top to bottom, as a reader would, in an empty folder: Python in one
namespace, shell line by line. A block with ``title="name"`` is written to that file. A comment
before a block, which readers do not see, says what else there is to know:

    <!-- test: slow -->           takes more than a few seconds
    <!-- test: flags only -->     long: only whether the commands take these flags
    <!-- test: not run, REASON -->
    <!-- test: slow
    model = ...                   Python that runs before the block
    -->
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Block", "blocks_of", "commands_of", "pages"]

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"(?:^<!--\ test(?::\ (?P<mark>[^\n]*?))?(?:\n(?P<before>(?:(?!-->).)*))?\ ?-->\n\n?)?"
    r"^(?P<indent>\ *)```(?P<info>[^\n]*)\n(?P<text>.*?)^(?P=indent)```\ *$",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, what its comment says, and its text."""

    line: int
    language: str
    title: str
    mark: str
    before: str
    text: str


def pages() -> list[Path]:
    """All READMEs and pages, relative to the root."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("packages/*/*.md"), *ROOT.glob("docs/**/*.md")]
    return sorted(path.relative_to(ROOT) for path in found)


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    blocks = []
    for match in FENCE.finditer(text):
        language, _, rest = match["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        lines = match["text"].splitlines()
        body = "\n".join(line.removeprefix(match["indent"]) for line in lines) + "\n"
        line = text.count("\n", 0, match.start("info")) + 1
        mark, before = match["mark"] or "", match["before"] or ""
        blocks.append(Block(line, language, title[1] if title else "", mark, before, body))
    return blocks


def commands_of(text: str, variables: dict[str, str] | None = None) -> list[list[str]]:
    """The commands of a shell block, each as words, without comments.

    ``NAME="…"`` on a line of its own goes into ``variables``.
    """
    variables = {} if variables is None else variables
    commands = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        words = shlex.split(line, comments=True)
        if len(words) == 1 and (assignment := re.fullmatch(r"([A-Z]+)=(.*)", words[0])):
            variables[assignment[1]] = assignment[2]
        elif words:
            commands.append(words)
    return commands
