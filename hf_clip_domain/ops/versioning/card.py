"""The card of a dataset: its figures for people, and at its head for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_clip_domain import __version__
from hf_clip_domain.ops.versioning.figures import Reading

SUFFIX = ".card.md"


@dataclass(frozen=True)
class DatasetCard:
    """Attributes:
    name: of the dataset.
    reading: how it was read.
    figures: of `describe`.
    content: of its files, see `content_of`; empty where that was not asked.
    reference: of the drift reference, if one was made: `file`, `model`, `revision`, `rows`.
    """

    name: str
    reading: Reading
    figures: dict[str, Any]
    content: str = ""
    reference: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path) -> DatasetCard | None:
        """Read what `save` wrote; `None` if there is none, or one of another version of this package."""
        try:
            head = yaml.safe_load(file.read_text(encoding="utf-8").split("---\n")[1])
            if head.pop("package") != __version__:
                return None
            return cls(**{**head, "reading": Reading(**head["reading"])})
        except (OSError, LookupError, TypeError, AttributeError, yaml.YAMLError):
            return None

    def save(self, file: Path) -> None:
        """Write it; the same bytes for the same data."""
        head = yaml.safe_dump({**asdict(self), "package": __version__}, sort_keys=False, allow_unicode=True)
        file.write_text(f"---\n{head}---\n\n{self.text()}\n", encoding="utf-8")

    def text(self) -> str:
        """Markdown."""
        found, rows = self.figures, self.figures["rows"]
        parts = [
            f"# {self.name}",
            "Pictures with captions." + (f" Content `md5:{self.content}`." if self.content else ""),
            _table(
                ["split", "rows", "captions", "groups"],
                [[name, *(f"{split[key]:,}" for key in split)] for name, split in found["splits"].items()],
            ),
            f"{rows['total']:,} rows, of which {rows['used']:,} are used, {rows['set_aside']:,} cannot be, and "
            f"{rows['left_out']:,} are left out since they share a picture or a group with a held-out split.",
            "## Set aside\n\n"
            + (
                _table(["reason", "rows"], [[reason, f"{number:,}"] for reason, number in found["set_aside"].items()])
                if found["set_aside"]
                else "Nothing."
            ),
            "## Standing twice\n\n" + "\n".join(f"- {kind}: {n:,}" for kind, n in found["duplicates"].items()),
            "## Pictures and captions\n\n" + self._sizes(),
        ]
        if found["labels"]["distinct"]:
            named = found["labels"]["commonest"]
            parts.append(
                f"## Labels\n\n{found['labels']['distinct']:,} labels"
                + (f"; the {len(named)} commonest" if len(named) < found["labels"]["distinct"] else "")
                + ":\n\n"
                + _table(["label", "rows"], [[label, f"{number:,}"] for label, number in named.items()])
            )
        if self.reference:
            parts.append(
                "## Drift reference\n\n`{file}`: {rows:,} held-out pairs as the model {model} sees them. "
                "`hf-clip-domain monitor` takes it with `--reference`.".format(**self.reference)
            )
        return "\n\n".join(parts)

    def _sizes(self) -> str:
        pictures, captions = self.figures["pictures"], self.figures["captions"]
        spread = {
            **{f"picture's {side}, pixels": pictures[side] for side in ("width", "height") if side in pictures},
            "words of a caption": captions["words"],
        }
        formats = ", ".join(f"{number:,} {name}" for name, number in pictures["formats"].items())
        return (
            _table(["", "least", "median", "most"], [[name, *map(str, own.values())] for name, own in spread.items()])
            + f"\n\nFormats: {formats}. {captions['per_row']:g} captions a row. {self.figures['groups']:,} groups."
        )


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(head)} |", "|:--" + "|--:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)])
