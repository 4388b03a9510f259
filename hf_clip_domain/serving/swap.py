"""Which model serves: replaced in one assignment by one that has proved itself, and kept for the way back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.memory import release_free_blocks
from hf_clip_domain.serving.canary import check_candidate
from hf_clip_domain.serving.gallery import Gallery
from hf_clip_domain.serving.metrics import Metrics
from hf_clip_domain.serving.model import LoadedModel

log = logging.getLogger(__name__)


class Models:
    """The model that serves and the one before it.

    A request takes `current` once and keeps to it, so a swap changes no answer under way, and fails none.

    Args:
        current: serves now.
        load: loads another version (`None`: what the name means now); called in a thread.
        metrics: told of every attempt.
        gallery: embedded by a model before it serves.
    """

    def __init__(
        self,
        current: LoadedModel,
        load: Callable[[str | None], LoadedModel],
        metrics: Metrics,
        gallery: Gallery | None = None,
    ) -> None:
        self.current, self.previous, self.gallery = current, None, gallery
        self._load, self._metrics = load, metrics
        self._one_at_a_time = asyncio.Lock()
        self.swapped: Callable[[LoadedModel], None] = lambda before: None  # told of the model that served

    async def reload(self, version: str | None = None) -> LoadedModel:
        """Load, check, swap; the model that served is kept.

        Raises:
            ClipDomainError: it cannot be loaded or fails its checks; then nothing has changed.
        """
        async with self._one_at_a_time:
            try:
                candidate = await asyncio.to_thread(self._prepare, version)
            except ClipDomainError as error:
                self._metrics.reloads.labels(outcome="refused").inc()
                log.error("reload refused", extra={"why": str(error)})
                raise
            await self._swap(candidate)
            await asyncio.to_thread(release_free_blocks)  # of the model before the one before
            self._metrics.reloads.labels(outcome="swapped").inc()
            return candidate

    async def roll_back(self) -> LoadedModel:
        """Serve the model before again; a second call goes forward again.

        Raises:
            ClipDomainError: there is none.
        """
        async with self._one_at_a_time:
            if self.previous is None:
                raise ClipDomainError("There is no model before this one.")
            await self._swap(self.previous)
            self._metrics.reloads.labels(outcome="rolled_back").inc()
            return self.current

    def _prepare(self, version: str | None) -> LoadedModel:
        candidate = self._load(version)
        check_candidate(candidate, self.current)
        return candidate

    async def _swap(self, candidate: LoadedModel) -> None:
        if self.gallery is not None:
            await asyncio.to_thread(self.gallery.index, candidate)
            async with self.gallery.changing:  # what was added or removed meanwhile
                await asyncio.to_thread(self.gallery.index, candidate)
                self.current, self.previous = candidate, self.current
        else:
            self.current, self.previous = candidate, self.current
        self.swapped(self.previous)
        log.info("model swapped", extra={"model": candidate.describe()})
