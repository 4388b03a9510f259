"""Where rows come from: recognises a source by what it is, and reads it without touching the pictures."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError

from hf_clip_domain.data.columns import split_in_name, split_of_folder
from hf_clip_domain.data.tables import TABLES, TableRows, text_encoding
from hf_clip_domain.data.versions import local_path
from hf_clip_domain.errors import ClipDomainError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".dcm")
_FILES = (*TABLES, ".parquet", ".tar", ".xlsx", ".xls", ".zip", ".gz", ".tgz")
_METADATA = ("metadata.jsonl", "metadata.csv", "captions.txt", "metadata.parquet")
SPLIT = "__split__"
PLACE = "__place__"  # of a row: the folder, under the base, that its picture's path starts from


@dataclass(frozen=True)
class Source:
    """Rows as they stand in the source.

    Attributes:
        name: as the user wrote it.
        base: folder against which relative picture paths are read.
        rows: dictionaries, for tables and folders; a row that could not be parsed is `{BAD: reason}`.
        tables: splits of `datasets`, for Parquet, WebDataset and the Hub; pictures are not decoded.
    """

    name: str
    base: Path
    rows: Iterable[dict[str, Any]] | None = None
    tables: dict[str, Dataset | IterableDataset] = field(default_factory=dict)


def open_source(source: str, *, streaming: bool = False, revision: str | None = None) -> Source:
    """Recognise and open a dataset.

    Raises:
        ClipDomainError: nothing there, an unknown format, an empty file, or an unreachable Hub id.
    """
    source = local_path(source)
    path = Path(source).expanduser()
    if any(sign in source for sign in "*?{"):
        return _shards(source, source, streaming)
    if path.is_dir():
        return _folder(source, path, streaming)
    if path.is_file():
        if path.suffix.lower() == ".tar":
            return _shards(source, str(path), streaming)
        if path.suffix.lower() == ".parquet":
            return Source(source, path.parent, tables=_load(source, "parquet", [str(path)], streaming))
        return Source(source, path.parent, rows=TableRows(path))
    # A Hub id is a name, or owner/name, without the ending of a file.
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix.lower() in _FILES:
        raise ClipDomainError(f"--dataset {source}: no such file or folder.{_near(path)}")
    return Source(source, Path("."), tables=_from_hub(source, streaming, revision))


def source_files(source: str) -> list[tuple[str, Path]] | None:
    """The files that a source is made of, with names that stay when it is moved; `None` for one on the Hub."""
    source = local_path(source)
    path = Path(source).expanduser()
    if any(sign in source for sign in "*?{"):
        files = [Path(file) for one in _expanded(source) for file in sorted(glob.glob(one))]
        return [(file.name, file) for file in files]
    if path.is_dir():
        return [(str(file.relative_to(path)), file) for file in sorted(path.rglob("*")) if file.is_file()]
    return [(path.name, path)] if path.is_file() else None


def _near(path: Path) -> str:
    there = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=3)
    return f" Did you mean {' or '.join(str(path.parent / name) for name in near)}?" if near else ""


def _folder(source: str, path: Path, streaming: bool) -> Source:
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        try:
            loaded = load_from_disk(str(path))
        except Exception as error:  # of every kind, as for `_load`
            raise ClipDomainError(f"--dataset {source}: the saved dataset is damaged: {_reason(error)}") from error
        return Source(source, path, tables=dict(loaded) if isinstance(loaded, DatasetDict) else {"": loaded})
    places = [("", path)] + [(child.name, child) for child in sorted(path.iterdir()) if child.is_dir()]
    rows: list[Iterable[dict[str, Any]]] = []
    for split, place in places:
        metadata = next((place / name for name in _METADATA if (place / name).is_file()), None)
        if metadata is not None and metadata.suffix != ".parquet":
            rows.append(_placed(TableRows(metadata), split_of_folder(split), str(place.relative_to(path))))
    if rows:
        return Source(source, path, rows=_Chain(rows))
    if any(path.glob("*.tar")):
        return Source(source, path, tables=_load(source, "webdataset", sorted(map(str, path.glob("*.tar"))), streaming))
    if any(path.rglob("*.parquet")):
        files = sorted(map(str, path.rglob("*.parquet")))
        return Source(source, path, tables=_load(source, "parquet", files, streaming))
    if any(picture.with_suffix(".txt").is_file() for picture in _pictures(path)):
        return Source(source, path, rows=_SideBySide(path))
    raise ClipDomainError(
        f"--dataset {source}: the folder holds none of {', '.join(_METADATA)}, *.tar, *.parquet, or pictures with a "
        ".txt of the same name beside them."
    )


def _pictures(path: Path) -> Iterator[Path]:
    return (file for file in sorted(path.rglob("*")) if file.suffix.lower() in PICTURES)


class _SideBySide:
    """Pictures with a `.txt` of the same name: one caption a line."""

    def __init__(self, path: Path):
        self.path = path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for picture in _pictures(self.path):
            caption, place = picture.with_suffix(".txt"), picture.relative_to(self.path)
            text = None
            if caption.is_file():
                text = caption.read_text(encoding=text_encoding(caption, say=False)).splitlines()
            split = split_of_folder(place.parts[0]) if len(place.parts) > 1 else None
            yield {"image": str(place), "text": text, SPLIT: split}


@dataclass(frozen=True)
class _placed:
    """Rows of a sub-folder: paths are relative to it, and its name is their split if it is one."""

    rows: TableRows
    split: str | None
    place: str

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            yield {**row, SPLIT: self.split, PLACE: self.place}


@dataclass(frozen=True)
class _Chain:
    parts: list[Iterable[dict[str, Any]]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for part in self.parts:
            yield from part


def _shards(source: str, pattern: str, streaming: bool) -> Source:
    files = [file for one in _expanded(pattern) for file in sorted(glob.glob(one))]
    if not files:
        raise ClipDomainError(f"--dataset {source}: no file matches.")
    kind = "parquet" if files[0].endswith(".parquet") else "webdataset"
    return Source(source, Path(files[0]).parent, tables=_load(source, kind, files, streaming))


def _expanded(pattern: str) -> list[str]:
    """`{000..012}` and `{a,b}` as a shell expands them."""
    start, end = pattern.find("{"), pattern.find("}")
    if start < 0 or end < start:
        return [pattern]
    inside, before, after = pattern[start + 1 : end], pattern[:start], pattern[end + 1 :]
    first, dots, last = inside.partition("..")
    if dots and first.isdigit() and last.isdigit():
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = inside.split(",")
    return [whole for choice in choices for whole in _expanded(before + choice + after)]


def _load(source: str, kind: str, files: list[str], streaming: bool) -> dict[str, Dataset | IterableDataset]:
    """The files as tables, one a split where their names tell (`test-00000-of-00001.parquet`, `val/000.tar`)."""
    common = os.path.commonpath([os.path.dirname(file) for file in files])
    named: dict[str, list[str]] = {}
    for file in files:
        place, name = os.path.split(os.path.relpath(file, common))
        folders = (split_of_folder(part) for part in Path(place).parts)
        split = split_in_name(name) or next(filter(None, folders), "train")
        named.setdefault(split, []).append(file)
    try:
        return dict(load_dataset(kind, data_files=named, streaming=streaming))
    except Exception as error:  # the builders raise a dozen types for a damaged file
        raise ClipDomainError(f"--dataset {source} could not be read as {kind}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split()) or type(error).__name__


def _from_hub(source: str, streaming: bool, revision: str | None) -> dict[str, Dataset | IterableDataset]:
    local = (
        f"To use a local copy: `hf download {source} --repo-type dataset --local-dir FOLDER` where there is a network, "
        "then --dataset FOLDER."
    )
    near = _near(Path(source))
    try:
        loaded = load_dataset(source, revision=revision, streaming=streaming)
    except DatasetNotFoundError as error:
        raise ClipDomainError(
            f"--dataset {source}: neither a local file or folder nor a dataset on the Hub that you may read.{near} {local}"
        ) from error
    except OSError as error:  # no connection is one
        raise ClipDomainError(
            f"--dataset {source} could not be reached on the Hub ({_reason(error)}).{near} {local}"
        ) from error
    except Exception as error:  # a script, a missing configuration, damaged files: each raises its own
        raise ClipDomainError(
            f"--dataset {source} could not be read from the Hub ({_reason(error)}). {local}"
        ) from error
    return dict(loaded) if isinstance(loaded, (DatasetDict, IterableDatasetDict)) else {"": loaded}
