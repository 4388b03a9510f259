"""Rows whose pictures are known by content, so that a picture whose features are stored is not opened."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_clip_domain.data.feature_store import FeatureStore
from hf_clip_domain.errors import ClipDomainError

_KEY_BYTES = 32
# A file changed within a clock tick of being read would look unchanged; so a fresh one is read again. Likewise in git.
_SETTLED_NS = 1_000_000_000
_INLINE = [-1, -1, -1]

Stamp = list[int]


@dataclass(frozen=True)
class PictureRefs:
    """The pictures of a batch.

    Attributes:
        keys: of each row, the SHA-256 of its picture's file.
        rows: the row's number in the dataset.
        shown: places in the batch of the rows that come with pixels, in their order.
    """

    keys: list[bytes]
    rows: list[int]
    shown: list[int]


class CachedRows:
    """Canonical rows with the keys of their pictures.

    A picture's bytes are hashed once a run in each process group of a machine that shares this object's memory
    (a process and its dataloader workers). A file is hashed again when its size or times changed; what a dataset
    holds itself cannot change during a run.

    Args:
        pairs: a `datasets.Dataset` of canonical rows.
        store: of the features of these pictures; can be replaced.
        needs_picture: whether the rows are used for more than their words even when the features are stored.
    """

    def __init__(self, pairs, store: FeatureStore | None = None, *, needs_picture: bool = False) -> None:
        self.pairs, self.store = pairs, store
        self._words = pairs if needs_picture else pairs.remove_columns("image")
        # Key and stamp of every row met so far, (rows, 4 + 3); seen by dataloader workers, and filled by them.
        self._known = torch.zeros(len(pairs), 7, dtype=torch.int64).share_memory_()

    def __call__(self, index: int) -> tuple[dict[str, Any], bytes, dict[str, Any] | None]:
        """Row, key of its picture, and the picture where it has to be shown; the row of one that has not may lack it.

        Raises:
            ClipDomainError: the picture's file cannot be read.
        """
        known = self._recall(index)
        if known is not None and known[1] == _INLINE and self._is_stored(known[0]):
            return self._words[index], known[0], None
        row, now = self.pairs[index], time.time_ns()
        stamp = _stamp(row["image"])
        if known is not None and known[1] == stamp and self._is_stored(known[0]):
            return row, known[0], None
        key, picture = identify(row["image"])
        if stamp == _INLINE or (stamp is not None and max(stamp[:2]) < now - _SETTLED_NS):
            parts = [int.from_bytes(key[at : at + 8], "little", signed=True) for at in range(0, _KEY_BYTES, 8)]
            self._known[index] = torch.tensor([*parts, *stamp])
        return row, key, None if self._is_stored(key) else picture

    def _is_stored(self, key: bytes) -> bool:
        return self.store is not None and key in self.store

    def _recall(self, index: int) -> tuple[bytes, Stamp] | None:
        *digest, first, second, third = self._known[index].tolist()
        if first == 0:
            return None
        return b"".join(part.to_bytes(8, "little", signed=True) for part in digest), [first, second, third]


def identify(image: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The key of a canonical row's picture, and the picture as the bytes that were hashed.

    A file may change between two readings: what is decoded shall be what the key names.

    Raises:
        ClipDomainError: the file cannot be read.
    """
    if image.get("bytes") is None:
        try:
            image = {"bytes": Path(image["path"]).read_bytes(), "path": image["path"]}
        except OSError as error:
            raise ClipDomainError(f"{image['path']}: {error.strerror}.") from error
    return hashlib.sha256(image["bytes"]).digest(), image


def _stamp(image: dict[str, Any]) -> Stamp | None:
    """Times and size of a picture's file: they only tell whether its content has to be hashed again."""
    if image.get("bytes") is not None:
        return _INLINE
    try:
        found = os.stat(image["path"])
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_ctime_ns, found.st_size]
