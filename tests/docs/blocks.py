"""The code blocks of README.md and docs, and how each is checked: by its language and the word after it.

| block | checked how |
|:--|:--|
| python | run, in the order of the page and in one namespace |
| bash run | every command is run, training commands with `SMALL` after their own options |
| bash | every command's options are read by that command's own parser, see commands.py |
| yaml, json | by what would load it, see `FORMATS` in test_blocks.py |
| text | output, or data shown: not checked |

Any other first line of a block is an error. A block that begins with a comment that names a file (`# mine.yaml`) is also
written to that file, for the blocks after it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
KINDS = ("python", "bash", "bash run", "yaml", "json", "text")
_FENCE = re.compile(r"^ {0,3}```(.*)$")
_NAMED = re.compile(r"# ([\w-]+\.(?:py|yaml))\b")


@dataclass(frozen=True)
class Block:
    """One code block: `where` is `docs/page.md:line` of its fence."""

    page: str
    line: int
    kind: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        named = _NAMED.match(self.text)
        return named[1] if named else None


def pages() -> list[str]:
    """README.md and everything in docs."""
    return ["README.md", *sorted(str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md"))]


def read_blocks(page: str, text: str | None = None) -> list[Block]:
    """The blocks of a page in its order.

    Raises:
        ValueError: a block of an unknown kind, or one without an end.
    """
    lines = ((ROOT / page).read_text(encoding="utf-8") if text is None else text).splitlines()
    found, begun, kind = [], 0, ""
    for number, line in enumerate(lines, start=1):
        fence = _FENCE.match(line)
        if fence and not begun:
            begun, kind = number, fence[1].strip()
            if kind not in KINDS:
                raise ValueError(f"{page}:{number}: a block of the kind {kind!r}; expected one of {', '.join(KINDS)}.")
        elif fence:
            found.append(Block(page, begun, kind, "\n".join(lines[begun : number - 1]) + "\n"))
            begun = 0
    if begun:
        raise ValueError(f"{page}:{begun}: a block without an end.")
    return found
