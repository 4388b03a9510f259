"""The rows of a source in one canonical form, whatever its columns are called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, Image
from transformers.utils import logging

from hf_clip_domain.data.columns import CONVENTIONS, Columns, find_columns, read_captions, read_split, split_in_name
from hf_clip_domain.data.sources import PLACE, SPLIT, Source
from hf_clip_domain.data.tables import BAD
from hf_clip_domain.errors import ClipDomainError

logger = logging.get_logger(__name__)

# Rows of JSON need not all have the same keys: so many are asked which there are.
_HEAD = 1000
# Only a remote table with a column of splits is asked row by row; it would be read whole otherwise.
_HEAD_OF_STREAM = 10_000


class Rows:
    """Numbered rows of a source: `image`, `text`, `label`, `group`, `split`, or `{BAD: reason}`.

    Every iteration reads the source anew, and several may run at once. Rows of tables also carry `index`, their split
    and place in it.

    Args:
        source: of the rows.
        given: columns named by the user, see `find_columns`.
        required: roles that a column has to be found for.

    Raises:
        ClipDomainError: no rows, a given column that is not there, or none that is recognised.
    """

    def __init__(
        self, source: Source, given: dict[str, str | None], required: Sequence[str] = ("image", "text")
    ) -> None:
        self.source = source
        self.names: dict[str, None] = {}  # of all columns
        self.tables: dict[str, tuple[Any, Columns]] = {}
        self.splits = _splits_of_tables(source)
        self.words: dict[str, list[str]] = {}  # of each table, the names of its classes
        for name, table in source.tables.items():
            names = list(table.column_names or next(iter(table), {}))
            columns = find_columns(names, source.name, required=required, **given)
            self.names.update(dict.fromkeys(names))
            features = table.features or {}
            if isinstance(features.get(columns.image), Image):
                table = table.cast_column(columns.image, Image(decode=False))
            elif columns.image in CONVENTIONS["image"] and table.features is None:
                table = table.decode(False) if hasattr(table, "decode") else table
            self.tables[name] = (table, columns)
            self.words[name] = getattr(features.get(columns.label), "names", None) or []
        if source.rows is not None:
            self.names = self._names()
            self.columns = find_columns(self.names, source.name, required=required, **given)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return enumerate(self._rows())

    def count(self) -> int | None:
        """The number of rows, if it is known without reading them."""
        sizes = [len(table) for table, _ in self.tables.values() if hasattr(table, "__len__")]
        return sum(sizes) if sizes else None

    def given_splits(self) -> set[str]:
        """The splits that the source itself gives, without touching a picture; empty if it gives none."""
        found: set[str | None] = set(self.splits.values())
        if self.source.rows is not None:
            for row in self.source.rows:
                found.add(_known(row.get(self.columns.split)) or _known(row.get(SPLIT)))
        for table, columns in self.tables.values():
            if columns.split and isinstance(table, Dataset):
                found |= {_known(value) for value in table.unique(columns.split)}
            elif columns.split:
                head = islice(table.select_columns([columns.split]), _HEAD_OF_STREAM)
                found |= {_known(row[columns.split]) for row in head}
        # Rows without a split, among others that have one, are training rows.
        return {split or "train" for split in found} if found - {None} else set()

    def _names(self) -> dict[str, None]:
        head = list(islice(self.source.rows, _HEAD))
        names = dict.fromkeys(name for row in head if BAD not in row for name in row if name not in (SPLIT, PLACE))
        if not names:
            reason = f" that can be read: {head[0][BAD]}." if head else "."
            raise ClipDomainError(f"{self.source.name} has no rows{reason}")
        return names

    def _rows(self) -> Iterator[dict[str, Any]]:
        if self.source.rows is not None:
            for row in self.source.rows:
                yield row if BAD in row else self._canonical(row, self.columns, row.get(SPLIT), [])
        for name, (table, columns) in self.tables.items():
            for index, row in enumerate(table):
                canonical = self._canonical(row, columns, self.splits[name], self.words[name])
                yield {**canonical, "index": (name, index)}

    def _canonical(self, row: dict[str, Any], columns: Columns, split: str | None, words: list[str]) -> dict[str, Any]:
        try:
            label = row.get(columns.label) if columns.label else None
            if words and isinstance(label, int):
                label = words[label] if 0 <= label < len(words) else None  # -1: not labelled
            return {
                "image": self.picture(row.get(columns.image), row.get(PLACE, ".")),
                "text": read_captions(row.get(columns.text)),
                "label": _word(label),
                "group": _word(row.get(columns.group) if columns.group else None),
                # The row knows best: some sets keep all their splits in one table, named for any of them.
                "split": read_split(row.get(columns.split) if columns.split else None) or read_split(split),
            }
        except (ValueError, OSError) as error:  # OSError: a name that no file system takes
            value = row.get(columns.image)
            reason = error.strerror if isinstance(error, OSError) else str(error)
            return {BAD: reason, "file": value if isinstance(value, str) else None}

    def picture(self, value: Any, place: str) -> dict[str, Any]:
        """The picture in a cell as `{"bytes", "path"}`; paths start from `place`, a folder under the source's base.

        Raises:
            ValueError: there is none; the message is the reason.
            OSError: a name that no file system takes.
        """
        if isinstance(value, bytes):
            return {"bytes": value, "path": None}
        if isinstance(value, dict) and (value.get("bytes") is not None or value.get("path")):
            if value.get("bytes") is not None:
                return {"bytes": value["bytes"], "path": value.get("path")}
            value = value["path"]
        if not isinstance(value, str):
            raise ValueError(
                f"picture is a {type(value).__name__}, expected a path or bytes" if value else "no picture"
            )
        if not value.strip():
            raise ValueError("no picture")
        if value.startswith(("http://", "https://")):
            raise ValueError("picture is a web address, expected a file: pictures are not downloaded")
        path = Path(value)
        if path.is_absolute():
            return {"bytes": None, "path": str(path)}
        base = self.source.base / place
        found = next(
            (base / folder / path for folder in ("", "images") if (base / folder / path).is_file()), base / path
        )
        return {"bytes": None, "path": str(found.resolve())}


def _splits_of_tables(source: Source) -> dict[str, str | None]:
    """The split of each table by its name. One table alone says nothing, unless it is held out by name."""
    splits = {name: split_in_name(name) for name in source.tables}
    if len(splits) == 1:
        # `datasets` calls everything "train" that has no splits.
        return {name: None if split == "train" else split for name, split in splits.items()}
    if any(splits.values()):
        for name in (name for name, split in splits.items() if split is None):
            logger.warning(f"{source.name}: its split {name!r} is taken for training.")
            splits[name] = "train"
    return splits


def _known(value: Any) -> str | None:
    try:
        return read_split(value)
    except ValueError:
        return None  # such a row is set aside when it is read


def _word(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    return None if value is None or value == "" or value != value else str(value)  # NaN differs from itself
