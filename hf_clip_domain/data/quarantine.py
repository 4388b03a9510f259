"""Rows that cannot be used are set aside with their reason; too many of them stop the run."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from transformers.utils import logging

from hf_clip_domain.errors import ClipDomainError

logger = logging.get_logger(__name__)

# A stream cannot know its total: a share is only telling after so many rows.
MIN_ROWS_OF_STREAM = 200


class Quarantine:
    """Collects bad rows in a JSONL file of `row`, `file` and `reason`, written as they are found.

    Args:
        source: for messages.
        file: where to write; `None` only counts. An earlier file of that name is replaced.
        max_fraction: largest share of bad rows that is tolerated.
        quiet: no warning about those that are.
    """

    def __init__(self, source: str, file: Path | None, max_fraction: float, *, quiet: bool = False):
        self.source, self.file, self.max_fraction = source, None if file is None else Path(file), max_fraction
        self.examples: dict[str, tuple[str, str]] = {}  # of each kind: the reason in full, and where
        self.reasons: Counter[str] = Counter()
        self.quiet, self.passes = quiet, 0
        self.listed = -1  # rows up to here stand in the file
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def again(self) -> Quarantine:
        """For one more pass over the source: counts from nothing, and lists no row twice."""
        one_more = Quarantine(self.source, None, self.max_fraction, quiet=self.passes > 0)
        self.passes += 1
        if self.file is not None:
            one_more.file = self.file
            if self.file.exists():  # asked of the file, since an earlier pass may have run in another process
                with open(self.file, encoding="utf-8") as stream:
                    one_more.listed = max((json.loads(line)["row"] for line in stream), default=-1)
        return one_more

    def silent(self) -> Quarantine:
        """For a pass over rows that another pass lists."""
        return Quarantine(self.source, None, self.max_fraction, quiet=True)

    @property
    def count(self) -> int:
        return sum(self.reasons.values())

    def add(self, row: int, file: str | None, reason: str) -> None:
        """Set one row aside."""
        if self.file is not None and row > self.listed:
            self.listed = row
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # A file name may hold bytes that are no UTF-8; backslashes make them the escapes that JSON knows.
            with open(self.file, "a", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(json.dumps({"row": row, "file": file, "reason": reason}, ensure_ascii=False) + "\n")
        # Messages name their file and its numbers; without them the same reasons can be counted together.
        reason = reason.removeprefix(f"{file}: ") if file else reason
        kind = re.sub(r"\d[\d,]*|'[^']*'", "#", reason)
        self.reasons[kind] += 1
        self.examples.setdefault(kind, (reason, f"row {row}" + (f" ({file})" if file else "")))

    def check(self, total: int, *, final: bool = True) -> None:
        """Stop when too large a share of the rows seen so far is bad.

        Raises:
            ClipDomainError: sums up the reasons with an example each.
        """
        if not final and total < MIN_ROWS_OF_STREAM:
            return
        if total and self.count > self.max_fraction * total:
            raise ClipDomainError(f"{self.source}: {self.summary(total)}. More than --max_bad_fraction "
                                  f"{self.max_fraction:g}: mend the data, or allow more.")  # fmt: skip
        if final and self.count and not self.quiet:
            logger.warning(f"{self.source}: {self.summary(total)}; the others are used.")

    def summary(self, total: int) -> str:
        listed = "; ".join(
            "{} x {}, first {}".format(number, *self.examples[kind]) for kind, number in self.reasons.most_common(5)
        )
        where = f", all listed in {self.file}" if self.file is not None else ""
        return f"{self.count:,} of {total:,} rows cannot be used ({listed}{where})"
