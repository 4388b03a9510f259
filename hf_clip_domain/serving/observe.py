"""ASGI, outermost: a request's id, its line in the log, its place in the metrics, and the last catch of all failures."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Collection
from typing import Any

from hf_clip_domain.serving.errors import internal_error
from hf_clip_domain.serving.metrics import Metrics

log = logging.getLogger("hf_clip_domain.serving.requests")
_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")


class Observer:
    """Watches every request.

    Args:
        app: the application.
        metrics: told of every answer.
        paths: that are counted by name; any other counts as "other", so that nobody can fill the metrics with names.
        draining: whether clients are to be told to close their connections.
    """

    def __init__(self, app: Any, metrics: Metrics, paths: Collection[str], draining: Callable[[], bool]) -> None:
        self.app, self.metrics, self.paths, self.draining = app, metrics, frozenset(paths), draining

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        before, status = time.perf_counter(), 0
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given if _ID.fullmatch(given) else os.urandom(12).hex().encode()
        state = scope.setdefault("state", {})

        async def stamped(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", request_id)]
                if self.draining():
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        failure = None
        try:
            await self.app(scope, receive, stamped)
        except Exception as error:  # its trace goes to the log, never outward
            failure = error
            if not status:
                await internal_error().send(stamped)
        seconds = time.perf_counter() - before
        endpoint = scope["path"] if scope["path"] in self.paths else "other"
        self.metrics.watch_request(endpoint, status or 499, seconds)  # 499: the client left before an answer
        level = logging.ERROR if failure is not None else logging.INFO
        details = {
            "request_id": request_id.decode(),
            "key": state.get("key"),
            "method": scope["method"],
            "endpoint": endpoint,
            "status": status or 499,
            "ms": round(1000 * seconds, 2),
        }
        log.log(level, "request", extra=details, exc_info=failure)
        return None
