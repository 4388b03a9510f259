"""Between requests and their statistics: handed over on the event loop in a microsecond, worked off by one thread.

Sketching, counting tokens and writing files happen in that thread. Of a busy server's requests a share is drawn, so that
statistics cost a percent of a core or two whatever the load. Where the thread cannot keep up, or a file cannot be written,
requests are lost and counted; none waits and none fails.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hf_clip_domain.serving.model import LoadedModel
from hf_clip_domain.serving.statistics import RequestStatistics

log = logging.getLogger(__name__)

# A kill costs the requests of so many seconds.
SAVE_SECONDS = 5.0
# Of so many requests a second all are taken; of more, about so many, by chance. A window of 500 is full within a minute.
REQUESTS_A_SECOND = 10.0
# Embeddings that may wait for the thread: some 20 MiB. Beyond, requests go unrecorded.
_MOST_ROWS = 10_000
# The model that serves and the one before it, to which requests under way and a rollback still belong.
_MODELS = 2


class Recorder:
    """Statistics of every model that serves, one `RequestStatistics` each.

    Args:
        folder: of the windows.
        requests: how many make a window.
        model: that serves first.

    Raises:
        ClipDomainError: the folder cannot be written into.
    """

    def __init__(self, folder: str | Path, requests: int, model: LoadedModel) -> None:
        self._folder, self._requests = folder, requests
        self._open: dict[str, RequestStatistics] = {}  # by weights, the latest opened last
        self._statistics(model)
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._rows, self._counting = 0, threading.Lock()
        self.recorded, self._dropped, self._lost, self._windows = 0, 0, 0, 0
        self._thread: threading.Thread | None = None
        self._second, self._asked, self._share, self._draw = 0.0, 0, 1.0, random.Random()

    def start(self) -> None:
        """Begin to work off."""
        self._thread = threading.Thread(target=self._work, name="statistics", daemon=True)
        self._thread.start()

    def wants(self) -> bool:
        """Whether the request that begins now is drawn; on the event loop."""
        now = time.monotonic()
        if now - self._second >= 1:
            self._share = min(1.0, REQUESTS_A_SECOND * (now - self._second) / max(1, self._asked))
            self._second, self._asked = now, 0
        self._asked += 1
        return self._share >= 1 or self._draw.random() < self._share

    def record(self, model: LoadedModel, texts: Sequence[str] = (), **found: Any) -> None:
        """One request that was answered; returns at once.

        Args:
            texts: what the user wrote, to count its tokens; it is not kept.
            found: see `RequestStatistics.record`; instead of `entropies` the `probabilities` `(n, c)`, and instead of
                `pair_margins` the embeddings of `pairs`, `(p, d)` of pictures and of their texts.
        """
        rows = sum(len(found[name]) for name in ("image_embeds", "text_embeds") if found.get(name) is not None)
        with self._counting:
            if self._rows + rows > _MOST_ROWS:
                self._dropped += 1
                return
            self._rows += rows
        self._waiting.put(partial(self._record, model, texts, found, rows))

    def swapped(self, before: LoadedModel) -> None:
        """The window of a model that no longer serves ends here."""
        self._waiting.put(partial(self._end, before))

    def close(self) -> None:
        """Work off what waits and write the last windows; may take a moment."""
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()

    @property
    def lost(self) -> int:
        """Requests without a trace: too many at once, or a disk that failed."""
        return self._dropped + self._lost + sum(statistics.lost for statistics in list(self._open.values()))

    @property
    def windows(self) -> int:
        """Windows written."""
        return self._windows + sum(statistics.written for statistics in list(self._open.values()))

    def stats(self) -> dict[str, int]:
        """For the dashboard."""
        return {"recorded": self.recorded, "lost": self.lost, "windows": self.windows}

    def _work(self) -> None:
        due = time.monotonic() + SAVE_SECONDS
        while True:
            work: Callable[[], None] | None
            try:
                work = self._waiting.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                due, work = time.monotonic() + SAVE_SECONDS, self._save
            try:
                if work is None:
                    return self._end()
                work()
                if time.monotonic() >= due:
                    due = time.monotonic() + SAVE_SECONDS
                    self._save()
            except Exception:  # of whatever kind: statistics are worth neither a request nor the thread
                log.exception("a request could not be recorded")

    def _record(self, model: LoadedModel, texts: Sequence[str], found: dict[str, Any], rows: int) -> None:
        try:
            if (chances := found.pop("probabilities", None)) is not None:
                found["entropies"] = entropies(chances)
            if (pairs := found.pop("pairs", None)) is not None and model.centre is not None:
                found["pair_margins"] = model.centre.margins(*pairs)
            ids = model.token_ids(texts) if len(texts) else None
            self._statistics(model).record(token_ids=ids, **found)
            self.recorded += 1
        except Exception:
            self._lost += 1
            raise
        finally:
            with self._counting:
                self._rows -= rows

    def _save(self) -> None:
        for statistics in self._open.values():
            statistics.save()

    def _end(self, model: LoadedModel | None = None) -> None:
        for weights, statistics in self._open.items():
            if model is None or weights == model.weights:
                statistics.close()

    def _statistics(self, model: LoadedModel) -> RequestStatistics:
        if model.weights not in self._open:
            self._open[model.weights] = RequestStatistics(
                self._folder, revision=model.weights, resolution=model.resolution, requests=self._requests
            )
            while len(self._open) > _MODELS:
                old = self._open.pop(next(iter(self._open)))
                old.close()
                self._lost, self._windows = self._lost + old.lost, self._windows + old.written
        return self._open[model.weights]


def entropies(chances: np.ndarray) -> np.ndarray:
    """Of probabilities `(n, c)`, in nats: `(n,)`."""
    return -(chances * np.log(np.maximum(chances, np.finfo(chances.dtype).tiny))).sum(axis=1)
