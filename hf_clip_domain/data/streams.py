"""Pairs as they come: every split is a pass over the source that keeps its own rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from datasets import IterableDataset, IterableDatasetDict

from hf_clip_domain.data.checking import FEATURES, checked
from hf_clip_domain.data.quarantine import Quarantine
from hf_clip_domain.data.rows import Rows
from hf_clip_domain.data.splits import split_of


def stream_splits(rows: Rows, quarantine: Quarantine, *, seed: int, **fractions: float) -> IterableDatasetDict:
    """Splits of rows that are checked as they pass; nothing is held but one chunk.

    Rows without a given split fall into one by a hash of their group or picture. Where the source gives splits but no
    validation, validation is carved out of training in the same way.

    Args:
        rows: the source's.
        quarantine: takes the bad rows of training's passes (every pass meets them all).
        seed: of the hash.
        fractions: `validation_fraction`, `test_fraction`.
    """
    given = rows.given_splits()
    names = given or {"train"}
    if fractions["validation_fraction"] > 0 and "train" in names:
        names = names | {"validation"}
    if fractions["test_fraction"] > 0 and not given:
        names = names | {"test"}
    passes = _Passes(rows, quarantine, frozenset(given), {**fractions, "seed": seed})
    return IterableDatasetDict(
        {
            name: IterableDataset.from_generator(passes, features=FEATURES, gen_kwargs={"split": name})
            for name in ("train", "validation", "test")
            if name in names
        }
    )


@dataclass(frozen=True)
class _Passes:
    """Makes the rows of a split; a class because workers that are spawned have to unpickle it."""

    rows: Rows
    quarantine: Quarantine
    given: frozenset[str]
    shares: dict[str, Any]
    # `datasets` caches what it makes of a generator by a hash of it, and would give yesterday's rows for today's files.
    unlike_any_other: str = field(default_factory=lambda: uuid4().hex)

    def __call__(self, split: str) -> Iterator[dict[str, Any]]:
        training = split == "train"
        quarantine = self.quarantine.again() if training else self.quarantine.silent()
        # Training checks every row; the other passes need not decode what is not theirs.
        own = None if training else lambda row: self._split(row) == split
        for row in checked(self.rows, quarantine, streaming=True, own=own):
            if self._split(row) == split:
                yield {name: row[name] for name in FEATURES}

    def _split(self, row: dict[str, Any]) -> str:
        key = f"group:{row['group']}" if row["group"] is not None else row["keys"][0]
        if not self.given:
            return split_of(key, **self.shares)
        split = row["split"] or "train"
        if split == "train" and "validation" not in self.given:
            return split_of(key, **{**self.shares, "test_fraction": 0.0})
        return split
