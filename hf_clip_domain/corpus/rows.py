"""The rows of a corpus in shards of a fixed number of rows: what a shard holds depends on the source alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from datasets import Dataset

from hf_clip_domain.data.columns import read_captions, read_split
from hf_clip_domain.data.rows import Rows
from hf_clip_domain.data.sources import PLACE, SPLIT, open_source
from hf_clip_domain.data.tables import BAD
from hf_clip_domain.errors import ClipDomainError

SIDES = ("image", "text")


@dataclass(frozen=True)
class CorpusRow:
    """One row, whatever the state it is in.

    Attributes:
        number: its place in the source, from 0.
        key: what the source calls it: the key column, or the picture's path as written there.
        split: the split it belongs to, where the source says.
        image: `{"bytes", "path"}`, not decoded; `None` where there is none, and for a corpus of texts.
        text: the first caption; `None` where there is none, and for a corpus of pictures.
        errors: why `image` or `text` is missing.
    """

    number: int
    key: str | None
    split: str | None
    image: dict[str, Any] | None
    text: str | None
    errors: tuple[str, ...] = ()


class Corpus:
    """A dataset as `load_pairs` takes it, but with pictures alone or texts alone as well, and with no row left out.

    Args:
        source, revision, streaming, image_column, text_column: as for `load_pairs`.
        key_column: names each row in the result.
        only: `"image"` or `"text"` to leave out the other side; default: what the source has.

    Attributes:
        sides: which of `"image"` and `"text"` there are.
        count: number of rows, where it is known before they are read; of any source once all `shards` were asked for.

    Raises:
        ClipDomainError: an unreadable source, a column that is not there, or neither pictures nor texts.
    """

    def __init__(
        self,
        source: str,
        *,
        image_column: str | None = None,
        text_column: str | None = None,
        key_column: str | None = None,
        only: str | None = None,
        streaming: bool = False,
        revision: str | None = None,
    ) -> None:
        opened = open_source(source, streaming=streaming, revision=revision)
        wanted = SIDES if only is None else (only,)
        given = {"image": image_column, "text": text_column}
        self._rows = Rows(opened, given, required=() if only is None else wanted)
        self.name, self.key_column = opened.name, key_column
        if key_column is not None and key_column not in self._rows.names:
            raise ClipDomainError(
                f"{source}: --key_column {key_column}: no such column; there are {', '.join(self._rows.names)}."
            )
        columns = [columns for _, columns in self._rows.tables.values()]
        columns += [self._rows.columns] if opened.rows is not None else []
        self.sides = tuple(side for side in wanted if any(getattr(own, side) for own in columns))
        if not self.sides:
            raise ClipDomainError(
                f"{source}: no column of pictures or texts among {', '.join(self._rows.names)}; name it with "
                "--image_column or --text_column."
            )
        self.columns = {side: [getattr(own, side) for own in columns] for side in self.sides}
        tables = [table for table, _ in self._rows.tables.values()]
        self._seekable = opened.rows is None and all(isinstance(table, Dataset) for table in tables)
        self.count = sum(len(table) for table in tables) if self._seekable else None

    def shards(self, size: int, mine: Callable[[int], bool]) -> Iterator[tuple[int, Iterator[CorpusRow]]]:
        """Shards of `size` rows (the last may have fewer) with their numbers, those that are `mine`, in order.

        Tables are read from the shard's first row on; rows of other sources pass by unopened until they are wanted.
        A shard's rows have to be taken before the next shard is.
        """
        if self._seekable:
            for number in range(-(-self.count // size)):
                if mine(number):
                    yield number, self._between(number * size, min((number + 1) * size, self.count))
            return
        for number, rows in groupby(self._numbered(), key=lambda numbered: numbered[0] // size):
            if mine(number):
                yield number, (self._row(place, table, raw) for place, table, raw in rows)

    def _between(self, start: int, stop: int) -> Iterator[CorpusRow]:
        offset = 0
        for name, (table, _) in self._rows.tables.items():
            first, last = max(start - offset, 0), min(stop - offset, len(table))
            if first < last:
                for place, raw in enumerate(table.select(range(first, last)), start=offset + first):
                    yield self._row(place, name, raw)
            offset += len(table)

    def _numbered(self) -> Iterator[tuple[int, str | None, dict[str, Any]]]:
        """Rows as the source has them and the table they are from (`None` without tables); at the end their count."""
        tables = {name: table for name, (table, _) in self._rows.tables.items()} or {None: self._rows.source.rows}
        number = 0
        for name, table in tables.items():
            for raw in table:
                yield number, name, raw
                number += 1
        self.count = number

    def _row(self, number: int, table: str | None, raw: dict[str, Any]) -> CorpusRow:
        if BAD in raw:
            return CorpusRow(number, None, None, None, None, (raw[BAD],))
        columns = self._rows.columns if table is None else self._rows.tables[table][1]
        errors: list[str] = []
        cells = {side: raw.get(getattr(columns, side)) for side in self.sides}
        image = text = None
        if "image" in cells:
            image = _attempt(lambda: self._rows.picture(cells["image"], raw.get(PLACE, ".")), errors)
        if "text" in cells:
            text = _attempt(lambda: read_captions(cells["text"])[0], errors)
        own = raw.get(columns.split) if columns.split else None
        named = raw.get(SPLIT) if table is None else self._rows.splits[table]
        split = _attempt(lambda: read_split(own), []) or named
        return CorpusRow(number, self._key(raw, cells.get("image")), split, image, text, tuple(errors))

    def _key(self, raw: dict[str, Any], picture: Any) -> str | None:
        if self.key_column is not None:
            key = raw.get(self.key_column)
        else:  # WebDataset calls its samples by name
            key = raw.get("__key__") or (picture.get("path") if isinstance(picture, dict) else picture)
            key = key if isinstance(key, str) else None
        return None if key is None else str(key)


def _attempt(read: Callable[[], Any], errors: list[str]) -> Any:
    """What `read` returns, or `None` and its reason among the errors."""
    try:
        return read()
    except (ValueError, OSError) as error:  # OSError: a name that no file system takes
        errors.append(error.strerror if isinstance(error, OSError) else str(error))
        return None
