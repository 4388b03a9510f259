"""The cache that outlives the process: one SQLite file, written by one thread, oldest entries dropped first.

A write-ahead log keeps the file whole when the process is killed; a checksum a row makes a damaged one a miss.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
import zlib
from pathlib import Path

import numpy as np

from hf_clip_domain.errors import ClipDomainError

log = logging.getLogger(__name__)
_TABLE = """CREATE TABLE IF NOT EXISTS embeddings (
    number INTEGER PRIMARY KEY, key BLOB UNIQUE NOT NULL, row BLOB NOT NULL, checksum INTEGER NOT NULL)"""
_WAITING = 10_000  # rows that may wait to be written; more are not kept
_KEY_BYTES = 96  # of an entry besides its row: the key twice, and SQLite's own
_PAUSE = 0.05


class DiskCache:
    """Rows of float32 by key; safe in several threads.

    Args:
        file: made where there is none; one that is damaged is put aside.
        capacity: bytes of entries.

    Raises:
        ClipDomainError: the file cannot be opened or made.
    """

    def __init__(self, file: str | Path, capacity: int) -> None:
        self.file, self.capacity = Path(file), capacity
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except (OSError, sqlite3.OperationalError) as error:
            raise ClipDomainError(f"--disk_cache {file}: {error}.") from error
        self._waiting: queue.Queue[tuple[bytes, bytes] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._write, name="disk-cache", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        try:
            self._connect()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            aside = self.file.with_name(f"{self.file.name}.damaged-{int(time.time())}")
            self.file.rename(aside)
            for ending in ("-wal", "-shm"):
                self.file.with_name(self.file.name + ending).unlink(missing_ok=True)
            log.warning("the cache on disk was damaged and is put aside", extra={"file": str(aside), "why": str(error)})
            self._connect()

    def _connect(self) -> None:
        self._lock = threading.Lock()
        self._reader = sqlite3.connect(self.file, check_same_thread=False, timeout=5, isolation_level=None)
        self._reader.execute("PRAGMA journal_mode=WAL")
        self._reader.execute("PRAGMA synchronous=NORMAL")
        self._reader.execute(_TABLE)
        self.bytes = self._reader.execute(
            f"SELECT COALESCE(SUM(LENGTH(row) + {_KEY_BYTES}), 0) FROM embeddings"
        ).fetchone()[0]

    def get(self, key: bytes) -> np.ndarray | None:
        """`(d,)` float32; `None` where there is none, or a damaged one."""
        try:
            with self._lock:
                found = self._reader.execute("SELECT row, checksum FROM embeddings WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            log.warning("the cache on disk cannot be read", extra={"why": str(error)})
            return None
        if found is None or zlib.crc32(key + found[0]) != found[1]:
            return None
        return np.frombuffer(found[0], dtype="<f4")

    def put(self, key: bytes, row: np.ndarray) -> None:
        """Write a row soon; not at all where too many wait."""
        try:
            self._waiting.put_nowait((key, row.astype("<f4").tobytes()))
        except queue.Full:
            pass

    def close(self) -> None:
        """Write what waits, and close."""
        self._waiting.put(None)
        self._thread.join()
        with self._lock:
            self._reader.close()

    def _write(self) -> None:
        connection = sqlite3.connect(self.file, timeout=5, isolation_level=None)
        connection.execute("PRAGMA synchronous=NORMAL")
        open_ = True
        while open_:
            rows = [self._waiting.get()]
            time.sleep(_PAUSE if self._waiting.empty() and rows[0] is not None else 0)  # one transaction for many
            while not self._waiting.empty() and len(rows) < 1000:
                rows.append(self._waiting.get())
            open_ = None not in rows
            try:
                self._insert(connection, [row for row in rows if row is not None])
            except sqlite3.Error as error:  # a full disk is no reason to stop serving
                log.warning("the cache on disk cannot be written", extra={"why": str(error)})
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        connection.close()

    def _insert(self, connection: sqlite3.Connection, rows: list[tuple[bytes, bytes]]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        for key, row in rows:
            written = connection.execute(
                "INSERT OR IGNORE INTO embeddings (key, row, checksum) VALUES (?, ?, ?)",
                (key, row, zlib.crc32(key + row)),
            )
            self.bytes += written.rowcount * (len(row) + _KEY_BYTES)
        while self.bytes > self.capacity:
            gone = connection.execute(
                "DELETE FROM embeddings WHERE number IN (SELECT number FROM embeddings ORDER BY number LIMIT 256) "
                f"RETURNING LENGTH(row) + {_KEY_BYTES}"
            ).fetchall()
            if not gone:
                break
            self.bytes -= sum(size for (size,) in gone)
        connection.execute("COMMIT")
