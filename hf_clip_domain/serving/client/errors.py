"""What a request can end with, in the server's own words."""

from __future__ import annotations

from typing import Any

from hf_clip_domain.errors import ClipDomainError


class ServingError(ClipDomainError):
    """A request that got no answer.

    Attributes:
        status: of HTTP; `None` when there was no response at all.
        code: the server's word for it, such as `"image_too_large"`.
        param: the field at fault, such as `"images[3]"`.
        retry_after: seconds after which the server may be asked again, where it says so.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after


class RefusedError(ServingError):
    """The request itself is wrong: sending it again changes nothing."""


class UnauthorizedError(RefusedError):
    """The key is missing, unknown, or not allowed to do this."""


class OverloadedError(ServingError):
    """The server was busy, or the key's rate used up, at every attempt."""


class TimedOutError(ServingError):
    """There was no answer in time."""


class UnreachableError(ServingError):
    """No connection to the server."""


def error_of(status: int, body: Any, retry_after: float | None) -> ServingError:
    """What a response other than 2xx means; `body` is its JSON, or `None` of a proxy's page."""
    told = body.get("error") if isinstance(body, dict) else None
    told = told if isinstance(told, dict) else {}
    message = told.get("message") or f"The server answered {status}."
    if status in (401, 403):
        kind: type[ServingError] = UnauthorizedError
    elif status in (408, 504):
        kind = TimedOutError
    elif status in (429, 503):
        kind = OverloadedError
    else:
        kind = RefusedError if status < 500 else ServingError
    where = f"{told['param']}: " if told.get("param") and not message.startswith(told["param"]) else ""
    return kind(
        f"{where}{message}", status=status, code=told.get("code"), param=told.get("param"), retry_after=retry_after
    )
