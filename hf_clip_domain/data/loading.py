"""`load_pairs`: any source of pictures and captions to splits of checked rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    List,
    Value,
    concatenate_datasets,
)
from tqdm.auto import tqdm

from hf_clip_domain.data.columns import CONVENTIONS, Columns, find_columns, read_captions, read_split
from hf_clip_domain.data.images import check_image
from hf_clip_domain.data.quarantine import Quarantine
from hf_clip_domain.data.sources import BAD, SPLIT, Source, open_source
from hf_clip_domain.data.splits import assign_splits, split_of
from hf_clip_domain.errors import ClipDomainError

FEATURES = Features(
    {"image": Image(decode=False), "text": List(Value("string")), "label": Value("string"), "group": Value("string")}
)
_CHUNK = 256


def load_pairs(
    source: str | Path,
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    streaming: bool = False,
    revision: str | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    max_bad_fraction: float = 0.05,
    quarantine_file: Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> DatasetDict | IterableDatasetDict:
    """Read pairs and check every one of them.

    Args:
        source: CSV, TSV, JSON (a list, or under `data`), JSONL, Parquet, a folder (`metadata.jsonl`/`.csv`,
            `captions.txt`, or a `.txt` beside each picture, also in `train/`, `test/` sub-folders), WebDataset shards
            (`shards/{000..009}.tar`), a folder of `save_to_disk`, or a Hub id. Pictures may be DICOM.
        image_column, text_column, label_column, group_column: names, where convention does not find them.
        streaming: read rows as they come, in bounded memory; splits then follow a hash of group or file name.
        revision: of a Hub dataset.
        validation_fraction, test_fraction: shares to hold out where the source does not say.
        max_bad_fraction: stop above this share of bad rows.
        quarantine_file: JSONL file for the bad rows.
        seed: of the split.

    Returns:
        Splits `train`, `validation`, `test` (those that there are) of rows `image` ({"bytes", "path"}), `text` (a list
        of one or more captions), `label`, `group` (`None` where the source has none).

    Raises:
        ClipDomainError: an unreadable source, a missing column, or too many bad rows.
    """
    opened = open_source(str(source), streaming=streaming, revision=revision)
    given = {"image": image_column, "text": text_column, "label": label_column, "group": group_column}
    quarantine = Quarantine(opened.name, quarantine_file, max_bad_fraction)
    fractions = {"validation_fraction": validation_fraction, "test_fraction": test_fraction, "seed": seed}
    raw = _Raw(opened, given)
    if streaming:
        return _stream(raw, quarantine, fractions)
    rows = list(_checked(raw, quarantine, progress, raw.count()))
    quarantine.check(raw.seen)
    if not rows:
        raise ClipDomainError(f"{opened.name} has no rows.")
    splits = assign_splits([row["split"] for row in rows], [row["keys"] for row in rows], **fractions)
    result = DatasetDict()
    for name in ("train", "validation", "test"):
        chosen = [row for row, split in zip(rows, splits, strict=True) if split == name]
        if chosen:
            result[name] = _table(chosen, raw)
    return result


class _Raw:
    """The source's rows with columns found: `(number, row)` where the row is canonical, or `{BAD: reason}`."""

    def __init__(self, source: Source, given: dict[str, str | None]):
        self.source, self.given, self.seen = source, given, 0
        self.tables: dict[str, Any] = {}
        if source.rows is None:
            for split, table in source.tables.items():
                names = list(table.column_names or next(iter(table), {}))
                columns = find_columns(names, source.name, **given)
                if type((table.features or {}).get(columns.image)).__name__ == "Image":
                    table = table.cast_column(columns.image, Image(decode=False))
                elif columns.image in CONVENTIONS["image"] and table.features is None:
                    table = table.decode(False) if hasattr(table, "decode") else table
                self.tables[split] = (table, columns)
        else:
            first = next((row for row in source.rows if BAD not in row), None)
            if first is None:
                raise ClipDomainError(f"{source.name} has no rows" + self._first_defect())
            names = [name for name in first if name is not None and not name.startswith("__")]
            self.columns = find_columns(names, source.name, **given)

    def _first_defect(self) -> str:
        reason = next((row[BAD] for row in self.source.rows), None)
        return f" that can be read: {reason}." if reason else "."

    def count(self) -> int | None:
        sizes = [len(table) for table, _ in self.tables.values() if hasattr(table, "__len__")]
        return sum(sizes) if sizes else None

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        self.seen = 0
        for row in self._rows():
            yield self.seen, row
            self.seen += 1

    def _rows(self) -> Iterator[dict[str, Any]]:
        if self.source.rows is not None:
            for row in self.source.rows:
                yield row if BAD in row else self._canonical(row, self.columns, row.get(SPLIT))
            return
        for split, (table, columns) in self.tables.items():
            for index, row in enumerate(table):
                yield {**self._canonical(row, columns, split), "index": (split, index)}

    def _canonical(self, row: dict[str, Any], columns: Columns, split: str | None) -> dict[str, Any]:
        try:
            image = self._picture(row.get(columns.image), row.get("__place__", "."))
            own = columns.split and row.get(columns.split)
            return {
                "image": image,
                "text": read_captions(row.get(columns.text)),
                "label": _word(row.get(columns.label) if columns.label else None),
                "group": _word(row.get(columns.group) if columns.group else None),
                "split": read_split(split or own),
            }
        except ValueError as error:
            value = row.get(columns.image)
            return {BAD: str(error), "file": value if isinstance(value, str) else None}

    def _picture(self, value: Any, place: str) -> dict[str, Any]:
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
        path = Path(value)
        if path.is_absolute():
            return {"bytes": None, "path": str(path)}
        base = self.source.base / place
        found = next(
            (base / folder / path for folder in ("", "images") if (base / folder / path).is_file()), base / path
        )
        return {"bytes": None, "path": str(found.resolve())}


def _checked(
    raw: _Raw, quarantine: Quarantine, progress: bool, total: int | None, *, streaming: bool = False
) -> Iterator[dict[str, Any]]:
    """Rows that can be used, with the keys that bind them; the others go to quarantine. Order is kept."""
    rows = iter(raw)
    with (
        ThreadPoolExecutor() as pool,  # Pillow decodes without holding the interpreter's lock
        tqdm(total=total, desc="Checking pairs", unit="row", delay=2, leave=False, disable=not progress) as bar,
    ):
        while chunk := list(islice(rows, _CHUNK)):
            for (number, row), outcome in zip(chunk, pool.map(_inspect, [row for _, row in chunk]), strict=True):
                if isinstance(outcome, str):
                    file = row.get("file") or (row.get("image") or {}).get("path")
                    quarantine.add(number, file, outcome)
                elif streaming or outcome["image"]["bytes"] is None:
                    yield outcome
                else:  # the table keeps the bytes; holding them here too would fill memory
                    yield {**outcome, "image": None}
            if streaming:
                quarantine.check(raw.seen, final=False)
            bar.update(len(chunk))


def _inspect(row: dict[str, Any]) -> dict[str, Any] | str:
    """The row with its keys, or the reason why it cannot be used."""
    if BAD in row:
        return row[BAD]
    image = row["image"]
    try:
        check_image(image)
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    except ClipDomainError as error:
        return str(error)
    except OSError as error:
        return f"{image['path']}: {error.strerror}."
    keys = [f"picture:{hashlib.sha256(content).hexdigest()}"]
    if row["group"] is not None:
        keys.append(f"group:{row['group']}")
    return {**row, "keys": keys}


def _table(rows: list[dict[str, Any]], raw: _Raw) -> Dataset:
    """Rows as a `Dataset`; pictures that lie in a table stay there, memory-mapped."""
    columns = {name: [row[name] for row in rows] for name in ("text", "label", "group")}
    if all(row["image"] is not None for row in rows):
        return Dataset.from_dict({"image": [row["image"] for row in rows], **columns}, features=FEATURES)
    parts = []
    for split, (table, found) in raw.tables.items():
        indices = [row["index"][1] for row in rows if row["index"][0] == split]
        if indices:
            part = table.select(indices).select_columns([found.image])
            part = part if found.image == "image" else part.rename_column(found.image, "image")
            parts.append(part.cast_column("image", Image(decode=False)))
    pictures = concatenate_datasets(parts)
    for name in ("text", "label", "group"):
        pictures = pictures.add_column(name, columns[name], feature=FEATURES[name])
    return pictures


def _stream(raw: _Raw, quarantine: Quarantine, fractions: dict[str, Any]) -> IterableDatasetDict:
    """Every split reads the source anew and keeps its own rows; only training's pass fills the quarantine."""
    given = {row["split"] for _, row in islice(iter(raw), 1000) if BAD not in row} - {None}
    given |= {read_split(split) for split in raw.tables} - {None}
    names = ["train", *(name for name in ("validation", "test") if name in given)] if given else None
    if names is None:
        names = [
            name for name in ("train", "validation", "test") if name == "train" or fractions[f"{name}_fraction"] > 0
        ]

    def rows(split: str) -> Iterable[dict[str, Any]]:
        own = quarantine if split == "train" else Quarantine(raw.source.name, None, quarantine.max_fraction)
        for row in _checked(raw, own, False, None, streaming=True):
            key = f"group:{row['group']}" if row["group"] is not None else row["keys"][0]
            if (row["split"] or ("train" if given else split_of(key, **fractions))) == split:
                yield {name: row[name] for name in FEATURES}

    return IterableDatasetDict(
        {name: IterableDataset.from_generator(rows, features=FEATURES, gen_kwargs={"split": name}) for name in names}
    )


def _word(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)
