"""Embeddings kept by what they were made of: content, model and preprocessing. In memory, and if wanted on disk.

A key is a hash of the model's identity (weights, configuration, preprocessing, precision), the kind and the content's
bytes, so that an entry cannot be met by another model or another picture.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict

import numpy as np

from hf_clip_domain.serving.disk_cache import DiskCache

# What Python holds for an entry besides the numbers: key, array header, two slots of an ordered dict.
_OVERHEAD = 400


def key_of(identity: bytes, kind: str, content: bytes) -> bytes:
    """32 bytes. `identity` has a fixed length and `kind` no NUL, so no two triples give the same input."""
    return hashlib.sha256(b"%b%b\0%b" % (identity, kind.encode(), content)).digest()


class MemoryCache:
    """The most recently used embeddings, up to `capacity` bytes; safe in several threads."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.bytes = capacity, 0
        self._rows: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes) -> np.ndarray | None:
        """`(d,)` float32, read-only."""
        with self._lock:
            row = self._rows.get(key)
            if row is not None:
                self._rows.move_to_end(key)
            return row

    def put(self, key: bytes, row: np.ndarray) -> None:
        """Keep a row; the least recently used go."""
        size = row.nbytes + _OVERHEAD
        if size > self.capacity:
            return
        row = row.copy()  # not a view that would keep its whole batch
        row.flags.writeable = False
        with self._lock:
            old = self._rows.pop(key, None)
            if old is not None:
                self.bytes -= old.nbytes + _OVERHEAD
            self._rows[key] = row
            self.bytes += size
            while self.bytes > self.capacity:
                _, gone = self._rows.popitem(last=False)
                self.bytes -= gone.nbytes + _OVERHEAD


class EmbeddingCache:
    """Memory before disk.

    Args:
        memory: bytes.
        disk: the slower one, if any.
    """

    def __init__(self, memory: int, disk: DiskCache | None = None) -> None:
        self.memory, self.disk = MemoryCache(memory), disk
        self.hits: Counter[tuple[str, str]] = Counter()  # by kind and level
        self.misses: Counter[str] = Counter()

    def get(self, key: bytes, kind: str) -> np.ndarray | None:
        """From memory alone: quick enough for the event loop. A miss counts when the disk has none either."""
        row = self.memory.get(key)
        if row is not None:
            self.hits[kind, "memory"] += 1
        return row

    def get_slowly(self, key: bytes, kind: str) -> np.ndarray | None:
        """From disk, and then into memory; for a thread that may wait."""
        row = self.disk.get(key) if self.disk is not None else None
        if row is None:
            self.misses[kind] += 1
            return None
        self.hits[kind, "disk"] += 1
        self.memory.put(key, row)
        return row

    def put(self, key: bytes, row: np.ndarray) -> None:
        """Into both; the disk's turn comes when its thread has time."""
        self.memory.put(key, row)
        if self.disk is not None:
            self.disk.put(key, row)

    def close(self) -> None:
        """Write what waits for the disk."""
        if self.disk is not None:
            self.disk.close()

    def stats(self) -> dict[str, int]:
        """For the dashboard."""
        return {
            "hits": sum(self.hits.values()),
            "misses": sum(self.misses.values()),
            "entries": len(self.memory),
            "bytes": self.memory.bytes,
            "capacity": self.memory.capacity,
            "disk_bytes": self.disk.bytes if self.disk is not None else 0,
        }
