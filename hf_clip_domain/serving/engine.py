"""From what a request brings to embeddings: cache, preparation in threads, batches; bounded, and fair to a neighbour.

A request that is given up (its client gone, its time over) is cancelled as an asyncio task: what it still has waiting
is never run.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.batcher import Batcher, Item
from hf_clip_domain.serving.cache import EmbeddingCache, key_of
from hf_clip_domain.serving.disk_cache import DiskCache
from hf_clip_domain.serving.errors import RequestError
from hf_clip_domain.serving.fetch import Fetcher
from hf_clip_domain.serving.metrics import Metrics
from hf_clip_domain.serving.model import IMAGE, TEXT, LoadedModel
from hf_clip_domain.serving.pictures import check_picture, is_address, read_base64
from hf_clip_domain.serving.quality import PictureFacts
from hf_clip_domain.serving.settings import Settings


class Engine:
    """Embeds for all requests at once.

    Args:
        settings: the server's.
        metrics: told what happens.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        disk = DiskCache(settings.disk_cache, settings.disk_cache_bytes) if settings.disk_cache else None
        self.cache = EmbeddingCache(settings.cache, disk)
        # Apart, so that a text does not wait behind pictures that are decoded.
        self.pools = {
            TEXT: ThreadPoolExecutor(1, thread_name_prefix="texts"),
            IMAGE: ThreadPoolExecutor(settings.pool_size, thread_name_prefix="pictures"),
        }
        self.batcher = Batcher(
            max_batch=settings.max_batch,
            batch_seconds=settings.batch_seconds,
            linger=settings.linger_ms / 1000,
            watch=metrics.watch_batch,
        )
        self.fetcher = Fetcher(settings)
        self.admitted: Counter[str] = Counter()  # prepared, waiting or running, by kind

    def start(self) -> None:
        """Begin; on the event loop."""
        self.batcher.start()

    def close(self) -> None:
        """Finish what was begun."""
        self.batcher.close()
        for pool in self.pools.values():
            pool.shutdown()
        self.cache.close()

    async def embed_texts(self, model: LoadedModel, texts: Sequence[str]) -> np.ndarray:
        """`-> (n, d)` float32.

        Raises:
            RequestError: 503 where too many wait.
        """
        keys = [key_of(model.identity, TEXT, text.encode()) for text in texts]
        rows: list[Any] = [self.cache.get(key, TEXT) for key in keys]
        missing = {keys[place]: texts[place] for place, row in enumerate(rows) if row is None}  # each text once
        if missing:
            with _Admission(self, TEXT, len(missing)):
                found = await self._embed_new_texts(model, missing)
            rows = [found[keys[place]] if row is None else row for place, row in enumerate(rows)]
        return np.stack(rows)

    async def _embed_new_texts(self, model: LoadedModel, texts: dict[bytes, str]) -> dict[bytes, np.ndarray]:
        def prepare() -> tuple[dict[bytes, np.ndarray], dict[bytes, list[int]]]:
            kept = {key: self.cache.get_slowly(key, TEXT) for key in texts}
            new = [key for key, row in kept.items() if row is None]
            ids = model.token_ids([texts[key] for key in new]) if new else []
            return {key: row for key, row in kept.items() if row is not None}, dict(zip(new, ids, strict=True))

        found, ids = await self._in_pool(TEXT, prepare)
        if ids:
            items = [self._item(model, TEXT, row, model.padded_length(row)) for row in ids.values()]
            found |= dict(zip(ids, await self._run(items, list(ids)), strict=True))
        return found

    async def embed_pictures(
        self, model: LoadedModel, pictures: Sequence[str | bytes], facts: PictureFacts | None = None
    ) -> list[np.ndarray | RequestError]:
        """A row `(d,)` float32 for each picture (bytes, base64, data URI or address), or why there is none.

        Args:
            facts: told what statistics keep of the pictures that can be read.

        Raises:
            RequestError: 503 where too many wait.
        """
        with _Admission(self, IMAGE, len(pictures)):
            found = await asyncio.gather(
                *(self._embed_picture(model, picture, facts) for picture in pictures), return_exceptions=True
            )
        for outcome in found:
            if isinstance(outcome, BaseException) and not isinstance(outcome, RequestError):
                raise outcome
        return found

    async def embed_all_pictures(
        self,
        model: LoadedModel,
        pictures: Sequence[str | bytes],
        field: str,
        facts: PictureFacts | None = None,
    ) -> np.ndarray:
        """`-> (n, d)` float32; the first picture that cannot be read fails all, named as `field[i]`."""
        rows = await self.embed_pictures(model, pictures, facts)
        for place, row in enumerate(rows):
            if isinstance(row, RequestError):
                raise row.at(f"{field}[{place}]")
        return np.stack(rows)

    async def _embed_picture(self, model: LoadedModel, picture: str | bytes, facts: PictureFacts | None) -> np.ndarray:
        if is_address(picture):
            picture = await self.fetcher.fetch(picture)

        def prepare() -> tuple[bytes, np.ndarray | None, Any]:
            content = read_base64(picture, self.settings) if isinstance(picture, str) else picture
            size = check_picture(content, self.settings)
            key = key_of(model.identity, IMAGE, content)
            row = self.cache.get(key, IMAGE)
            if row is None:
                row = self.cache.get_slowly(key, IMAGE)
            pixels = model.pixels(content) if row is None else None
            if facts is not None:
                facts.add(size, pixels)
            return key, row, pixels

        try:
            key, row, pixels = await self._in_pool(IMAGE, prepare)
        except ClipDomainError as error:
            raise RequestError(
                400, "The picture is damaged or cut short and cannot be decoded.", code="damaged_picture"
            ) from error
        if row is None:
            (row,) = await self._run([self._item(model, IMAGE, pixels, 1)], [key])
        return row

    async def _run(self, items: list[Item], keys: list[bytes]) -> list[np.ndarray]:
        self.batcher.submit(items)
        rows = await asyncio.gather(*(item.future for item in items))
        for key, row in zip(keys, rows, strict=True):
            if not np.isfinite(row).all():
                raise RuntimeError(f"{items[0].model.source}: a {items[0].kind}'s embedding is not finite")
            self.cache.put(key, row)
        return rows

    def _item(self, model: LoadedModel, kind: str, payload: Any, length: int) -> Item:
        return Item(model, kind, payload, length, asyncio.get_running_loop().create_future())

    async def _in_pool(self, kind: str, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.pools[kind], work)

    def busy_seconds(self, kind: str) -> float:
        """How long the engine has still to do for what it has taken, by its own experience."""
        each = self.batcher.pace.seconds.get(kind, 0.01) * (16 if kind == TEXT else 1)
        return self.admitted[kind] * each

    def queue(self) -> dict[str, int]:
        """For the dashboard."""
        return {TEXT: self.admitted[TEXT], IMAGE: self.admitted[IMAGE], "capacity": self.settings.queue}


class _Admission:
    """A place in the bounded queue for so many items, given back however the request ends."""

    def __init__(self, engine: Engine, kind: str, count: int) -> None:
        self.engine, self.kind, self.count = engine, kind, count

    def __enter__(self) -> None:
        if self.engine.admitted[self.kind] + self.count > self.engine.settings.queue:
            wait = min(60, math.ceil(self.engine.busy_seconds(self.kind)) or 1)
            self.engine.metrics.refused.labels(reason="queue_full").inc()
            raise RequestError(
                503, "Too many requests wait already. Send it again later.", code="queue_full", retry_after=wait
            )
        self.engine.admitted[self.kind] += self.count

    def __exit__(self, *_) -> None:
        self.engine.admitted[self.kind] -= self.count
