"""Rows of one shape on disk, found by key: appended once, memory-mapped when read, shared by processes of a machine.

A store is a folder of three files: `meta.json` says what the rows are, `rows` holds them one after the other, and
`entries` a key and checksums for each. A row is written before its entry and an entry carries its own checksum, so that
a kill at any moment leaves whole rows and at most a torn end, which the next writer writes over. Writers take turns by
a file lock; readers need none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from transformers.utils import logging

from hf_clip_domain.errors import ClipDomainError

logger = logging.get_logger(__name__)

VERSION = 1
_ENTRY = struct.Struct("<32sII")  # key, checksum of the row, checksum of both
_CHECKED = struct.Struct("<32sI")


class FeatureStore:
    """What `open_store` gives; can be sent to other processes, which then read what is there and what is added.

    Args:
        folder: of the store.
        shape, dtype: of a row.
        limit: bytes that its files may take together.
    """

    def __init__(self, folder: Path, shape: Sequence[int], dtype: torch.dtype, limit: int) -> None:
        self.folder, self.shape, self.dtype, self.limit = folder, tuple(shape), dtype, limit
        self.row_bytes = int(np.prod(self.shape)) * dtype.itemsize
        self._writable = True
        self._begin()
        self._read_entries()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        if key not in self._places:
            self._read_entries()
        return key in self._places

    def get(self, keys: Sequence[bytes]) -> tuple[torch.Tensor, list[bool]]:
        """Rows `(n, *shape)` and which of them were found; the others hold anything."""
        values = torch.empty((len(keys), *self.shape), dtype=self.dtype)
        raw = values.view(len(keys), -1).view(torch.uint8).numpy()  # (n, bytes of a row)
        return values, [key in self and self._read(key, raw[place]) for place, key in enumerate(keys)]

    def put(self, keys: Sequence[bytes], values: torch.Tensor) -> None:
        """Keep rows `(n, *shape)` as far as there is room; keys that are there already are left as they are."""
        if not self._writable:
            return
        raw = values.detach().cpu().contiguous().view(len(keys), -1).view(torch.uint8).numpy()
        try:
            with FileLock(self.folder / "lock"):
                self._read_entries()
                new = {key: place for place, key in enumerate(keys) if key not in self._places}
                room = max(0, self.limit // (self.row_bytes + _ENTRY.size) - self._count)
                self._append(list(new)[:room], raw[list(new.values())[:room]])
        except OSError as error:
            self._writable = False
            logger.warning(f"The feature cache in {self.folder} cannot be written to ({error}): it grows no more.")
            return
        if len(new) > room:
            self._writable = False
            logger.warning(
                f"The feature cache is full ({len(self):,} pictures): the others are computed in every epoch. "
                "--feature_cache_gib gives it more room."
            )

    def _append(self, keys: list[bytes], raw: np.ndarray) -> None:
        entries = b""
        for key, row in zip(keys, raw, strict=True):
            checked = _CHECKED.pack(key, zlib.crc32(row))
            entries += checked + struct.pack("<I", zlib.crc32(checked))
        for name, size, content in (("rows", self.row_bytes, raw.tobytes()), ("entries", _ENTRY.size, entries)):
            with open(self.folder / name, "r+b") as stream:
                stream.seek(self._count * size)
                stream.write(content)
        self._read_entries()

    def _read_entries(self) -> None:
        """Take up what was added since, up to the last whole entry; damaged ones before it are passed over."""
        try:
            with open(self.folder / "entries", "rb") as stream:
                stream.seek(self._count * _ENTRY.size)
                content = stream.read()
        except FileNotFoundError:
            return  # removed to make room: what is mapped stays readable
        begin = self._count
        for number in range(len(content) // _ENTRY.size):
            key, checksum, own = _ENTRY.unpack_from(content, number * _ENTRY.size)
            if own == zlib.crc32(_CHECKED.pack(key, checksum)):
                self._places[key] = (begin + number, checksum)
                self._count = begin + number + 1

    def _read(self, key: bytes, into: np.ndarray) -> bool:
        place, checksum = self._places[key]
        if self._map is None or place >= len(self._map):
            try:
                self._map = np.memmap(self.folder / "rows", np.uint8, "r", shape=(self._count, self.row_bytes))
            except (OSError, ValueError):  # removed, or shorter than its entries say
                return False
        into[:] = self._map[place]
        if place not in self._checked:
            if zlib.crc32(into) != checksum:
                logger.warning_once(f"The feature cache in {self.folder} has damaged rows: they are computed again.")
                del self._places[key]
                return False
            self._checked.add(place)
        return True

    def _begin(self) -> None:
        self._places: dict[bytes, tuple[int, int]] = {}
        self._count, self._map, self._checked = 0, None, set()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("folder", "shape", "dtype", "limit")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def open_store(
    root: Path, identity: dict[str, Any], shape: Sequence[int], dtype: torch.dtype, *, budget: int, rows: int
) -> FeatureStore:
    """The store under `root` of what `identity` names, a new one where there is none that can be used.

    Where the stores of other identities leave too little of the budget, those that lay unused the longest are removed.

    Args:
        identity: everything besides the key that decides a row, in plain values.
        shape, dtype: of a row.
        budget: bytes for everything under `root`.
        rows: that will be asked for at most.

    Raises:
        ClipDomainError: `root` cannot be written to.
    """
    meta = {"version": VERSION, "identity": identity, "shape": list(shape), "dtype": str(dtype)}
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    folder = root / name
    row_bytes = int(np.prod(shape)) * dtype.itemsize
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "lock"):
            defect = _defect(folder, meta, row_bytes)
            if defect is not None:
                logger.warning(f"The feature cache in {folder} is not used ({defect}): it is built anew.")
                shutil.rmtree(folder)
            if not folder.exists():
                _create(folder, meta)
            others = _make_room(folder, budget, needed=rows * (row_bytes + _ENTRY.size))
            os.utime(folder / "meta.json")
    except OSError as error:
        raise ClipDomainError(
            f"--feature_cache {root}: {error.strerror or error}. Name a folder that can be written to."
        ) from error
    return FeatureStore(folder, shape, dtype, budget - others)


def _defect(folder: Path, meta: dict[str, Any], row_bytes: int) -> str | None:
    if not folder.exists():
        return None
    try:
        found = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if found.get("version") != VERSION:
            return f"version {found.get('version')}, expected {VERSION}"
        if found != meta:
            return "meta.json describes other rows"
        entries = (folder / "entries").stat().st_size // _ENTRY.size
        if (folder / "rows").stat().st_size < entries * row_bytes:
            return "rows are missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"not whole: {error}"
    return None


def _create(folder: Path, meta: dict[str, Any]) -> None:
    """A folder under another name first, so that it is there as a whole or not at all."""
    draft = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed here
    draft.mkdir()
    (draft / "rows").touch()
    (draft / "entries").touch()
    (draft / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    os.replace(draft, folder)


def _make_room(folder: Path, budget: int, needed: int) -> int:
    """Remove stores, the longest unused first, until `needed` bytes or the whole budget are free; what others keep."""
    others = [path.parent for path in folder.parent.glob("*/meta.json") if path.parent != folder]
    others.sort(key=lambda other: (other / "meta.json").stat().st_mtime)
    sizes = {other: sum(file.stat().st_size for file in other.iterdir()) for other in others}
    for other in others:
        if sum(sizes.values()) + needed <= budget or not sizes:
            break
        logger.warning(f"The feature cache removes {other}, unused for the longest, to make room.")
        shutil.rmtree(other)
        del sizes[other]
    return sum(sizes.values())
