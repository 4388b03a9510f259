"""Rows of CSV, TSV, JSON, JSON lines and caption files, as people and other programs write them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_clip_domain.errors import ClipDomainError

logger = logging.get_logger(__name__)

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt")
BAD = "__bad__"


class TableRows:
    """The rows of a table file, read anew at every iteration; one that cannot be parsed is `{BAD: reason}`.

    Raises:
        ClipDomainError: an ending that is not known, or an empty file.
    """

    def __init__(self, path: Path):
        self.path = path
        if path.suffix.lower() not in TABLES:
            known = ", ".join((*TABLES, ".parquet", ".tar"))
            raise ClipDomainError(f"{path}: unknown format {path.suffix!r}; expected one of {known}, or a folder.")
        if path.stat().st_size == 0:
            raise ClipDomainError(f"{path} is empty.")
        self.encoding = text_encoding(path)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        suffix = self.path.suffix.lower()
        with open(self.path, encoding=self.encoding, newline="" if suffix in (".csv", ".tsv") else None) as stream:
            if suffix == ".txt":
                yield from _captions(stream)
            elif suffix in (".csv", ".tsv"):
                yield from _csv(stream, "\t" if suffix == ".tsv" else None)
            elif suffix == ".json":
                yield from _json(stream, self.path)
            else:
                yield from _json_lines(stream)


def text_encoding(path: Path, *, say: bool = True) -> str:
    """UTF-8 (with or without a byte order mark) if the whole file is; otherwise what Windows and Excel write."""
    with open(path, "rb") as stream:
        if stream.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            if say:
                logger.warning(f"{path} is not UTF-8; it is read as utf-16.")
            return "utf-16"
    for encoding in ("utf-8-sig", "cp1252", "latin-1"):
        try:
            with open(path, encoding=encoding) as stream:
                while stream.read(1 << 20):
                    pass
        except UnicodeDecodeError:
            continue
        if encoding != "utf-8-sig" and say:
            logger.warning(f"{path} is not UTF-8; it is read as {encoding}.")
        return encoding
    raise AssertionError("latin-1 decodes every byte")


def _csv(stream, delimiter: str | None) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    if delimiter is None:
        head = stream.readline()
        stream.seek(0)
        delimiter = max(",;\t", key=head.count)
    reader = csv.DictReader(stream, delimiter=delimiter)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        for row in reader:
            if None in row:
                yield {BAD: f"{len(row[None])} more cells than columns"}
            else:
                yield row
    except csv.Error as error:
        yield {BAD: f"not valid CSV from line {reader.line_num} on ({error})"}


def _json(stream, path: Path) -> Iterator[dict[str, Any]]:
    try:
        content = json.load(stream)
    except ValueError as error:
        stream.seek(0)
        if not _is_object(stream.readline()):
            raise ClipDomainError(f"{path} is not valid JSON: {error}.") from error
        stream.seek(0)  # lines of JSON under the other name
        yield from _json_lines(stream)
        return
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise ClipDomainError(f"{path}: expected a list of rows, or an object with the list under `data`.")
    for row in rows:
        yield row if isinstance(row, dict) else {BAD: f"a row is a {type(row).__name__}, expected an object"}


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _json_lines(stream) -> Iterator[dict[str, Any]]:
    for line in stream:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            row = {BAD: f"not valid JSON ({error})"}
        yield row if isinstance(row, dict) else {BAD: f"a row is a {type(row).__name__}, expected an object"}


def _captions(stream) -> Iterator[dict[str, Any]]:
    """`picture<TAB>caption` lines; lines of one picture are its captions."""
    captions: dict[str, list[str]] = {}
    for line in stream:
        if line.strip():
            name, _, caption = line.rstrip("\n").partition("\t")
            captions.setdefault(name, []).append(caption)
    for name, texts in captions.items():
        yield {"image": name, "text": texts}
