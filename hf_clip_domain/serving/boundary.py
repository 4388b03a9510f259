"""ASGI: what a request may take of the server: bytes, time, and no more once its client has gone.

The body is read whole before the application sees it, within the limits; the application then runs as a task that is
cancelled when the time is over or the client hangs up, and with it everything it still has waiting.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

from hf_clip_domain.serving.errors import RequestError
from hf_clip_domain.serving.metrics import Metrics
from hf_clip_domain.serving.settings import Settings

TIMEOUT_HEADER = b"x-request-timeout"
SHORTEST = 0.1  # seconds that may be asked for: less cannot be kept


class Boundary:
    """Limits of every request.

    Args:
        app: the application.
        settings: `max_body`, `max_bodies` and `timeout` count; a client may ask for less time by `x-request-timeout`.
        metrics: told who was refused.
    """

    def __init__(self, app: Any, settings: Settings, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self.most, self.most_together, self.timeout = settings.max_body, settings.max_bodies, settings.timeout
        self.held = 0  # bytes of all bodies now

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        before = time.monotonic()
        body = bytearray()
        try:
            timeout = self._timeout(scope)
            async with asyncio.timeout(timeout):
                if not await self._read(scope, receive, body):
                    return None  # the client has gone
            return await self._run(scope, receive, send, bytes(body), before + timeout)
        except TimeoutError:
            error = RequestError(408, "The request took too long to arrive.", code="slow_request")
        except RequestError as refused:
            error = refused
        finally:
            self.held -= len(body)
        self.metrics.refused.labels(reason=error.code).inc()
        return await error.send(send)

    def _timeout(self, scope: dict[str, Any]) -> float:
        said = next((value for name, value in scope["headers"] if name == TIMEOUT_HEADER), None)
        if said is None:
            return self.timeout
        try:
            seconds = float(said)
        except ValueError:
            seconds = math.nan
        if not SHORTEST <= seconds < math.inf:
            raise RequestError(400, f"x-request-timeout must be seconds, {SHORTEST} at least.", code="bad_timeout")
        return min(seconds, self.timeout)

    async def _read(self, scope: dict[str, Any], receive: Any, body: bytearray) -> bool:
        said = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not said.isdigit() or len(said) > 18 or int(said) > self.most:
            raise self._too_large()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            chunk = message.get("body", b"")
            if len(body) + len(chunk) > self.most:
                raise self._too_large()
            if self.held + len(chunk) > self.most_together:
                raise RequestError(
                    503, "The server holds too many large requests. Send it again later.", code="busy", retry_after=1
                )
            body += chunk
            self.held += len(chunk)
            more = message.get("more_body", False)
        return True

    async def _run(self, scope: dict[str, Any], receive: Any, send: Any, body: bytes, until: float) -> None:
        told, begun = False, False

        async def replay() -> dict[str, Any]:
            nonlocal told
            if told:
                return await asyncio.Future()  # whoever waits for the client's leaving is cancelled then
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def watched(message: dict[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        work = asyncio.ensure_future(self.app(scope, replay, watched))
        leaving = asyncio.ensure_future(receive())
        try:
            await asyncio.wait(
                {work, leaving}, timeout=max(0, until - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
            )
            if work.done():
                return work.result()
            gone = leaving.done()
        finally:
            leaving.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
        if gone:
            self.metrics.refused.labels(reason="client_gone").inc()
            return None
        if begun:  # too late for another status: the connection ends short of its length
            return None
        raise RequestError(504, "The request's time is over.", code="deadline")

    def _too_large(self) -> RequestError:
        return RequestError(413, f"The request is larger than {self.most:,} bytes.", code="request_too_large")
