"""One thread that runs the model, and the queues before it.

A free engine takes what waits at once: nothing is delayed when load is low, and batches grow by themselves when it is
high. Only an engine that was busy just before waits a few milliseconds for the clients that it has just answered.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_clip_domain.serving.model import IMAGE, TEXT, LoadedModel

# A batch runs at its longest text's length: one of half that length or less is not worth its padding.
_SHORTEST = 0.5
# Share of the last batch's time that waiting for company may cost.
_LINGER = 0.1


@dataclass(slots=True, eq=False)
class Item:
    """One text or picture that waits.

    Attributes:
        length: tokens it is padded to; 1 for a picture.
        future: gets the row `(d,)`; one that is cancelled is never run.
    """

    model: LoadedModel
    kind: str
    payload: Any
    length: int
    future: asyncio.Future
    since: float = field(default_factory=time.monotonic)


class Pace:
    """How long a text's token, or a picture, takes; learned from the batches that ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def learn(self, kind: str, units: int, seconds: float) -> None:
        """`units`: rows times length."""
        old, new = self.seconds.get(kind), seconds / units
        self.seconds[kind] = new if old is None else 0.8 * old + 0.2 * new

    def fits(self, kind: str, length: int, seconds: float) -> int:
        """Rows that a batch may have to take so many seconds; at least one."""
        each = self.seconds.get(kind, 0.0) * length
        return max(1, int(seconds / each)) if each else 1 << 30


def choose(waiting: Sequence[Item], most: Callable[[Item], int]) -> list[Item]:
    """The next batch: the oldest item, and those of its model and about its length, the most alike first.

    Args:
        waiting: of one kind, the oldest first; not empty.
        most: how many rows a batch led by an item may have.
    """
    lead = waiting[0]
    alike = [
        item
        for item in waiting
        if item.model is lead.model and lead.length * _SHORTEST < item.length <= lead.length and item is not lead
    ]
    alike.sort(key=lambda item: -item.length)  # stable: of one length, the oldest first
    return [lead, *alike[: most(lead) - 1]]


class Batcher:
    """Runs items in batches.

    Args:
        max_batch: rows of a batch.
        batch_seconds: how long one may take.
        linger: seconds to wait for company, at most.
        watch: called in the engine's thread with kind, rows and seconds of every batch.
    """

    def __init__(
        self, *, max_batch: int, batch_seconds: float, linger: float, watch: Callable[[str, int, float], None]
    ) -> None:
        self.max_batch, self.batch_seconds, self.linger, self.watch = max_batch, batch_seconds, linger, watch
        self.pace = Pace()
        self._waiting: dict[str, list[Item]] = {TEXT: [], IMAGE: []}
        self._condition = threading.Condition()
        self._wanted = 1  # the thread is woken when so many wait
        self._last = (IMAGE, 0, 0.0)  # kind, rows and seconds of the batch before
        self._open = True
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin; called on the event loop that the futures belong to."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> dict[str, int]:
        """Items in the queues."""
        return {kind: len(items) for kind, items in self._waiting.items()}

    def submit(self, items: list[Item]) -> None:
        """Queue items of one kind."""
        with self._condition:
            queue = self._waiting[items[0].kind]
            queue.extend(items)
            if sum(map(len, self._waiting.values())) >= self._wanted:
                self._condition.notify()

    def close(self) -> None:
        """Run what waits, then end."""
        with self._condition:
            self._open = False
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            started = time.monotonic()
            rows = _encode(batch)
            seconds = time.monotonic() - started
            self._loop.call_soon_threadsafe(_settle, batch, rows)
            kind, units = batch[0].kind, len(batch) * batch[0].length
            self._last = (kind, len(batch), seconds)
            self.pace.learn(kind, units, seconds)
            self.watch(kind, len(batch), seconds)

    def _next(self) -> list[Item]:
        """The next batch; waits for one. Empty when all is done."""
        with self._condition:
            while True:
                self._linger()
                while not any(self._waiting.values()):
                    if not self._open:
                        return []
                    self._wanted = 1
                    self._condition.wait()
                other = TEXT if self._last[0] == IMAGE else IMAGE  # by turns while both wait
                kind = other if self._waiting[other] else self._last[0]
                self._waiting[kind] = [item for item in self._waiting[kind] if not item.future.cancelled()]
                if self._waiting[kind]:
                    batch = choose(self._waiting[kind], self._most)
                    taken = set(map(id, batch))
                    self._waiting[kind] = [item for item in self._waiting[kind] if id(item) not in taken]
                    return batch

    def _linger(self) -> None:
        """Clients that were answered together ask again together: wait for half of them, but not long."""
        _, rows, seconds = self._last
        until = time.monotonic() + min(self.linger, _LINGER * seconds)
        self._wanted = max(1, rows // 2)
        while rows > 1 and self._open and sum(map(len, self._waiting.values())) < self._wanted:
            left = until - time.monotonic()
            if left <= 0:
                break
            self._condition.wait(left)

    def _most(self, lead: Item) -> int:
        return min(self.max_batch, self.pace.fits(lead.kind, lead.length, self.batch_seconds))


def _encode(batch: list[Item]) -> list[Any]:
    """A row or an exception for each; a batch that fails (too large for the memory, or one item bad) is halved."""
    try:
        return list(batch[0].model.encode(batch[0].kind, [item.payload for item in batch]))
    except Exception as error:  # the thread outlives whatever a batch does
        if len(batch) == 1:
            return [error]
    middle = len(batch) // 2
    return _encode(batch[:middle]) + _encode(batch[middle:])


def _settle(batch: list[Item], rows: list[Any]) -> None:
    for item, row in zip(batch, rows, strict=True):
        if item.future.done():  # cancelled meanwhile
            continue
        if isinstance(row, Exception):
            item.future.set_exception(row)
        else:
            item.future.set_result(row)
