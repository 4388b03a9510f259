"""What a server remembers of its requests: sketches, scores and sizes in files of a few hundred requests each.

Needs numpy alone. `hf-clip-domain monitor` reads the files and compares them with the model's reference. No picture, no
text, no address and no name is kept; see `sketches` and docs/drift.md for what the numbers tell all the same.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.quality import QUALITIES
from hf_clip_domain.serving.sketches import BUCKETS, SKETCH_DIM, buckets, sketch

logger = logging.getLogger(__name__)

FORMAT = 2
PATTERN = "window-*.npz"
# Windows that are not full yet; one that nobody has written for so many seconds is of a process that was killed.
OPEN_PATTERN = "open-*.npz"
ABANDONED_SECONDS = 600.0
# Name: type, and shape of a row.
SERIES: dict[str, tuple[type, tuple[int, ...]]] = {
    "image_sketches": (np.int8, (SKETCH_DIM,)),
    "text_sketches": (np.int8, (SKETCH_DIM,)),
    "pair_scores": (np.float32, ()),
    "pair_margins": (np.float32, ()),
    "top_scores": (np.float32, ()),
    "entropies": (np.float32, ()),
    "image_sizes": (np.uint32, (2,)),
    "image_qualities": (np.float32, (len(QUALITIES),)),
    "text_lengths": (np.uint32, ()),
}
_HOUR = 3600.0


class RequestStatistics:
    """Collects requests and writes a file whenever `requests` of them have come; safe in several threads.

    Several processes may write into one folder. What goes wrong with a file is logged and costs that window, never a
    request. `save` keeps what the window has so far, so that a kill costs no more than what came since: what was saved
    becomes a window once nobody has saved it again for ten minutes and some process writes into the folder. A window
    holds at most `rows` rows of each series, drawn evenly from all that came (reservoir sampling), and the folder at most
    `keep` windows: the oldest go.

    Args:
        folder: made where there is none.
        revision: of the model that embeds, `models.fingerprint.fingerprint(model)`.
        resolution: side in pixels of the square the model sees.
        requests: how many make a window.
        keep: how many windows remain in the folder.
        rows: of each series in a window.

    Raises:
        ClipDomainError: the folder cannot be made or written into, or a number below 1.

    ```python
    statistics = RequestStatistics("statistics", revision=revision, resolution=224)
    statistics.record(image_embeds=images, text_embeds=texts, pair_scores=scores, token_ids=ids)  # once a request
    statistics.close()
    ```
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        revision: str,
        resolution: int,
        requests: int = 500,
        keep: int = 200,
        rows: int = 1000,
    ) -> None:
        for name, number in {"requests": requests, "keep": keep, "rows": rows}.items():
            if number < 1:
                raise ClipDomainError(f"statistics: {name} is {number}; expected at least 1.")
        self.folder, self.requests, self.keep, self.rows = Path(folder), requests, keep, rows
        self.revision, self.resolution = revision, resolution
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (probe := self.folder / f".{uuid.uuid4().hex}.part").touch()
            probe.unlink()
        except OSError as error:
            raise ClipDomainError(f"statistics: {folder} cannot be written: {error.strerror or error}.") from error
        self.lost = 0  # requests of windows that could not be written
        self._lock = threading.Lock()
        self._draw = np.random.default_rng()
        self.written = 0
        self._open = self.folder / f"open-{os.getpid()}-{uuid.uuid4().hex[:8]}.npz"
        self._begin()
        self._tidy()

    def record(
        self,
        *,
        image_embeds: np.ndarray | None = None,
        text_embeds: np.ndarray | None = None,
        pair_scores: Sequence[float] | None = None,
        pair_margins: Sequence[float] | None = None,
        top_scores: Sequence[float] | None = None,
        entropies: Sequence[float] | None = None,
        token_ids: Sequence[Iterable[int]] | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        image_qualities: Sequence[np.ndarray] | None = None,
    ) -> None:
        """One request: whatever of it there is. Arrays may be of any float type; the caller keeps them.

        Args:
            image_embeds: `(n, d)` pictures' embeddings.
            text_embeds: `(m, d)` embeddings of what the user wrote; not of labels' prompts, which say nothing of him.
            pair_scores: `(p,)` similarity of each picture with the text that came with it as its own; not of all with
                all. This is what tells whether pictures and texts belong together.
            pair_margins: `(p,)` of the same pairs, see `centre`.
            top_scores: `(q,)` the best similarity of each query of a search or classification.
            entropies: `(q,)` entropy in nats of each classification's probabilities.
            token_ids: the texts' token ids, `m` of any length.
            image_sizes: `(n, 2)` height and width of the pictures as they came.
            image_qualities: `(n, 4)` of the pictures as the model sees them, see `quality`.
        """
        found = {
            "image_sketches": None if image_embeds is None or not len(image_embeds) else sketch(image_embeds),
            "text_sketches": None if text_embeds is None or not len(text_embeds) else sketch(text_embeds),
            "pair_scores": pair_scores,
            "pair_margins": pair_margins,
            "top_scores": top_scores,
            "entropies": entropies,
            "image_sizes": image_sizes,
            "image_qualities": image_qualities,
            "text_lengths": None,
        }
        texts: list[np.ndarray] = []
        if token_ids is not None:
            token_ids = [list(ids) for ids in token_ids]
            found["text_lengths"] = [len(ids) for ids in token_ids]
            texts = [buckets(ids) for ids in token_ids]
        with self._lock:
            for name, rows in found.items():
                if rows is not None:
                    self._add(name, np.asarray(rows, dtype=SERIES[name][0]).reshape(-1, *SERIES[name][1]))
            for hashed in texts:
                self._tokens[hashed] += 1
            self._texts += len(texts)
            self._count += 1
            if self._count >= self.requests:
                self._write()

    def save(self) -> None:
        """Keep on disk what the window has so far; to be called every few seconds where a kill must not cost a window.

        A failure is not told of: it matters only together with a kill, and a full window tells.
        """
        with self._lock, contextlib.suppress(OSError):
            if self._count > self._saved:
                self._put(self._open)
                self._saved = self._count
            elif self._saved:
                os.utime(self._open)  # still ours
            self._tidy()

    def close(self) -> None:
        """Write what has come since the last window."""
        with self._lock:
            if self._count:
                self._write()

    def _begin(self) -> None:
        self._kept: dict[str, np.ndarray] = {
            name: np.empty((self.rows, *shape), dtype=kind) for name, (kind, shape) in SERIES.items()
        }
        self._seen = dict.fromkeys(SERIES, 0)
        self._tokens, self._texts = np.zeros(BUCKETS, dtype=np.uint32), 0
        self._count, self._saved, self._started = 0, 0, time.time()

    def _add(self, name: str, rows: np.ndarray) -> None:
        """Vitter's algorithm R: after n rows, each of them is kept with probability `rows / n`."""
        for row in rows:
            place = self._seen[name]
            if place >= self.rows:
                place = int(self._draw.integers(place + 1))
            if place < self.rows:
                self._kept[name][place] = row
            self._seen[name] += 1

    def _write(self) -> None:
        name = f"window-{int(time.time() * 1000):014d}-{os.getpid()}-{self._open.stem[-8:]}-{self.written:06d}.npz"
        try:
            # What was saved is replaced before it is renamed: a kill in between leaves this window once, not twice.
            self._put(self._open)
            os.rename(self._open, self.folder / name)
            self.written += 1
        except OSError as error:
            logger.warning(f"Statistics of {self._count} requests are lost: {self.folder}: {error.strerror or error}")
            self.lost += self._count
            with contextlib.suppress(OSError):
                self._open.unlink(missing_ok=True)
        self._begin()
        self._tidy()

    def _put(self, file: Path) -> None:
        """Write the window, whole or not at all."""
        meta: dict[str, Any] = {
            "format": FORMAT,
            "revision": self.revision,
            "resolution": self.resolution,
            "requests": self._count,
            "texts": self._texts,
            "seen": self._seen,
            "started": self._started,
            "ended": time.time(),
        }
        used = np.flatnonzero(self._tokens)
        arrays = {name: rows[: self._seen[name]] for name, rows in self._kept.items()}
        arrays |= {"token_buckets": used.astype(np.uint32), "token_counts": self._tokens[used]}
        part = file.with_name(f".{file.name}.part")
        try:
            with open(part, "wb") as stream:
                np.savez(stream, meta=np.array(json.dumps(meta)), **arrays)
            os.replace(part, file)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def _tidy(self) -> None:
        """What killed processes left becomes windows, or goes if it is half written; only the newest windows remain."""
        now = time.time()
        with contextlib.suppress(OSError):  # another process tidies too
            for file in self.folder.glob(OPEN_PATTERN):
                if file != self._open and now - (ended := file.stat().st_mtime) > ABANDONED_SECONDS:
                    os.rename(
                        file, self.folder / f"window-{int(ended * 1000):014d}-{file.stem.removeprefix('open-')}.npz"
                    )
            for file in sorted(self.folder.glob(PATTERN))[: -self.keep]:
                file.unlink(missing_ok=True)
            for file in self.folder.glob(".*.part"):
                if now - file.stat().st_mtime > _HOUR:
                    file.unlink(missing_ok=True)
