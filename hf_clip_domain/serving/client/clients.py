"""`Client` and `AsyncClient`: the same methods, one waits and the other is awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hf_clip_domain._optional import require
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.client import requests
from hf_clip_domain.serving.client.answers import Classification, Hit, PairScore, State
from hf_clip_domain.serving.client.errors import ServingError, TimedOutError, UnreachableError, error_of
from hf_clip_domain.serving.client.requests import Answer, Image, Request
from hf_clip_domain.serving.client.retries import AGAIN, Retries, read_retry_after


class _Base:
    """What both clients are made of."""

    def __init__(
        self,
        address: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        retries: Retries | None = None,
        batch_size: int = 64,
        transport: Any = None,
    ) -> None:
        if timeout <= 0 or batch_size < 1:
            raise ClipDomainError(f"timeout is {timeout} and batch_size {batch_size}; expected more than 0.")
        self.address, self.retries, self.batch_size = address.rstrip("/"), retries or Retries(), batch_size
        self._httpx = require("httpx", extra="serve")
        # The server is told to give up when the client does.
        headers = {"x-request-timeout": f"{timeout:g}"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        self._options = {"base_url": self.address, "headers": headers, "timeout": timeout, "transport": transport}

    def _batches(self, items: Iterable[Any], name: str) -> list[Sequence[Any]]:
        items = requests.listed(items, name)
        return [items[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)]

    def _outcome(self, response: Any) -> dict[str, Any] | ServingError:
        """The answer's JSON, or what the response means instead."""
        try:
            body = response.json()
        except ValueError:
            body = None
        if response.is_success and isinstance(body, dict):
            return body
        if response.is_success:
            return ServingError(
                f"{self.address} gave no JSON: is it this package's server?", status=response.status_code
            )
        return error_of(response.status_code, body, read_retry_after(response.headers))

    def _failure(self, error: Exception) -> ServingError:
        """What an exception of httpx means."""
        if isinstance(error, self._httpx.TimeoutException) and not isinstance(error, self._httpx.ConnectTimeout):
            return TimedOutError(f"{self.address} gave no answer in time ({type(error).__name__}).")
        return UnreachableError(f"{self.address} cannot be reached: {error or type(error).__name__}.")

    def _wait(self, error: ServingError, attempt: int) -> float:
        """Seconds until the next attempt; raises the error when there is to be none."""
        again = isinstance(error, UnreachableError) or error.status in AGAIN
        seconds = self.retries.wait(attempt, error.retry_after) if again else None
        if seconds is None:
            raise error
        return seconds

    def _state(self, response: Any) -> State:
        body = self._outcome(response)
        if isinstance(body, ServingError):
            try:  # 503 tells why, in the form of a ready one
                body = response.json()
            except ValueError:
                return State(False, str(body), {})
        return State(response.is_success, str(body.get("status", "")), body.get("model") or {})


class Client(_Base):
    """Asks a server (`hf-clip-domain serve`).

    Args:
        address: of the server.
        api_key: where it wants one.
        timeout: seconds for one attempt, on the server's side too.
        retries: of what the server is too busy for (429, 503), and of lost connections.
        batch_size: texts or pictures sent at once by `embed_texts` and `embed_images`; longer lists take several
            requests.
        transport: httpx's own, for proxies and tests.

    Pictures are paths, bytes, or PIL images. Every method raises a `ServingError` with the server's message: of these,
    `RefusedError` (a mistake in the request), `UnauthorizedError`, `OverloadedError`, `TimedOutError`,
    `UnreachableError`.

    ```python
    with Client("http://127.0.0.1:8000", api_key=key) as client:
        scores = client.similarity(["scan.png"], ["a healthy wrist", "a fracture of the radius"])  # (1, 2)
    ```
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._http = self._httpx.Client(**self._options)

    def embed_texts(self, texts: Iterable[str]) -> np.ndarray:
        """Embeddings `(n, d)` float32 of texts."""
        return np.concatenate([self._send(requests.embed_texts(batch)) for batch in self._batches(texts, "texts")])

    def embed_images(self, images: Iterable[Image]) -> np.ndarray:
        """Embeddings `(n, d)` float32 of pictures; one that cannot be read fails all, see `pairs`."""
        return np.concatenate([self._send(requests.embed_images(batch)) for batch in self._batches(images, "images")])

    def similarity(self, images: Iterable[Image], texts: Iterable[str]) -> np.ndarray:
        """Similarity `(n, m)` float32 of every picture with every text."""
        return self._send(requests.similarity(images, texts))

    def pairs(self, images: Iterable[Image], texts: Iterable[str]) -> list[PairScore]:
        """Similarity of the first picture with the first text and so on; a bad picture fails alone."""
        return self._send(requests.pairs(images, texts))

    def classify(
        self, images: Iterable[Image], labels: Iterable[str] | None = None, templates: Iterable[str] | None = None
    ) -> Classification:
        """Zero-shot classification; labels and templates by default those of the model's domain."""
        return self._send(requests.classify(images, labels, templates))

    def search(self, text: str | None = None, *, image: Image | None = None, k: int = 10) -> list[Hit]:
        """The `k` pictures of the server's gallery that are nearest to a text or a picture, best first."""
        return self._send(requests.search(text, image, k))

    def ready(self) -> State:
        """Whether the server takes requests; asked once, and a server that is not there is not ready."""
        try:
            return self._state(self._http.get("/readyz"))
        except self._httpx.TransportError as error:
            return State(False, str(self._failure(error)), {})

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, request: Request[Answer]) -> Answer:
        attempt = 1
        while True:
            try:
                outcome = self._outcome(self._http.post(request.path, **request.content))
            except self._httpx.TransportError as error:
                outcome = self._failure(error)
            if not isinstance(outcome, ServingError):
                return request.read(outcome)
            time.sleep(self._wait(outcome, attempt))
            attempt += 1


class AsyncClient(_Base):
    """`Client` for asyncio: the same arguments and methods, awaited; several may run at once.

    Args:
        together: requests of one `embed_texts` or `embed_images` on their way at once.

    Raises:
        ClipDomainError: `together`, `timeout` or `batch_size` below what makes sense.
    """

    def __init__(self, *args: Any, together: int = 4, **options: Any) -> None:
        super().__init__(*args, **options)
        if together < 1:
            raise ClipDomainError(f"together is {together}; expected at least 1.")
        self.together = together
        self._http = self._httpx.AsyncClient(**self._options)

    async def embed_texts(self, texts: Iterable[str]) -> np.ndarray:
        """See `Client.embed_texts`."""
        return await self._send_all(requests.embed_texts, self._batches(texts, "texts"))

    async def embed_images(self, images: Iterable[Image]) -> np.ndarray:
        """See `Client.embed_images`."""
        return await self._send_all(requests.embed_images, self._batches(images, "images"))

    async def similarity(self, images: Iterable[Image], texts: Iterable[str]) -> np.ndarray:
        """See `Client.similarity`."""
        return await self._send(requests.similarity(images, texts))

    async def pairs(self, images: Iterable[Image], texts: Iterable[str]) -> list[PairScore]:
        """See `Client.pairs`."""
        return await self._send(requests.pairs(images, texts))

    async def classify(
        self, images: Iterable[Image], labels: Iterable[str] | None = None, templates: Iterable[str] | None = None
    ) -> Classification:
        """See `Client.classify`."""
        return await self._send(requests.classify(images, labels, templates))

    async def search(self, text: str | None = None, *, image: Image | None = None, k: int = 10) -> list[Hit]:
        """See `Client.search`."""
        return await self._send(requests.search(text, image, k))

    async def ready(self) -> State:
        """See `Client.ready`."""
        try:
            return self._state(await self._http.get("/readyz"))
        except self._httpx.TransportError as error:
            return State(False, str(self._failure(error)), {})

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send_all(self, make: Any, batches: list[Sequence[Any]]) -> np.ndarray:
        room = asyncio.Semaphore(self.together)

        async def send(batch: Sequence[Any]) -> np.ndarray:
            async with room:  # pictures are read when it is their turn
                return await self._send(make(batch))

        tasks = [asyncio.ensure_future(send(batch)) for batch in batches]
        try:
            return np.concatenate(await asyncio.gather(*tasks))
        finally:  # one that failed needs no others
            for task in tasks:
                task.cancel()

    async def _send(self, request: Request[Answer]) -> Answer:
        attempt = 1
        while True:
            try:
                outcome = self._outcome(await self._http.post(request.path, **request.content))
            except self._httpx.TransportError as error:
                outcome = self._failure(error)
            if not isinstance(outcome, ServingError):
                return request.read(outcome)
            await asyncio.sleep(self._wait(outcome, attempt))
            attempt += 1
