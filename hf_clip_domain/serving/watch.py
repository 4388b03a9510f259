"""Follows a registry's alias: when it comes to mean another version, that version is loaded, checked and swapped in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.swap import Models

log = logging.getLogger(__name__)


async def follow(models: Models, find: Callable[[], str], seconds: float) -> None:
    """Look every so many seconds, until cancelled.

    Only a change counts: a version that was refused, or rolled back from, is not tried again until the alias moves.

    Args:
        models: where to swap.
        find: the version that the alias means now; called in a thread, may raise `ClipDomainError`.
    """
    seen = models.current.version
    while True:
        await asyncio.sleep(seconds)
        try:
            version = await asyncio.to_thread(find)
            if version != seen:
                seen = version
                await models.reload(version)
        except ClipDomainError as error:
            log.warning("the registry's alias could not be followed", extra={"why": str(error)})
        except Exception:  # whatever happened, the model that serves goes on, and so does the watch
            log.exception("the registry's alias could not be followed")
