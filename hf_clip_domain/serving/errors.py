"""What goes wrong with a request, as the client is told: status, one sentence, a code; never a stack trace."""

from __future__ import annotations

from typing import Any

import orjson

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        status: of HTTP.
        message: one sentence for whoever sent it.
        code: a word for their program.
        param: the field at fault, such as `images[3]`.
        retry_after: seconds until it may be sent again.
    """

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after = retry_after

    def at(self, param: str) -> RequestError:
        """The same, said of a field."""
        return RequestError(self.status, self.message, code=self.code, param=param, retry_after=self.retry_after)

    @property
    def details(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"message": self.message, "type": kind, "code": self.code, "param": self.param}

    @property
    def body(self) -> bytes:
        return orjson.dumps({"error": self.details})

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(self.body)).encode())]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(max(1, round(self.retry_after))).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers

    async def send(self, send: Any) -> None:
        """As an ASGI response."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


def internal_error() -> RequestError:
    return RequestError(500, "The server failed; its log has the request's id.", code="internal_error")
