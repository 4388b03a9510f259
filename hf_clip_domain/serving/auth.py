"""Who may ask: keys that the server knows only by their hash, and how often each may.

A key is long and random, so a plain SHA-256 is enough, and a lookup by hash tells an attacker's clock nothing of a key.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.errors import RequestError
from hf_clip_domain.serving.metrics import Metrics
from hf_clip_domain.serving.settings import Settings

_LINE = re.compile(r"(?P<name>[\w.-]{1,64}):(?P<hash>[0-9a-f]{64})")
OPEN = frozenset({"/", "/healthz", "/readyz"})
ADMIN = ("/admin/", "/gallery")
_ADDRESSES = 10_000  # whose rates are remembered


def new_key(name: str) -> tuple[str, str]:
    """A new key, and the line `name:hash` that a keys file needs of it.

    Raises:
        ClipDomainError: the name is none.
    """
    key = f"clip-{secrets.token_urlsafe(32)}"
    line = f"{name}:{_hash(key)}"
    if _LINE.fullmatch(line) is None:
        raise ClipDomainError(f"--new_key {name!r}: expected letters, digits, dots and dashes.")
    return key, line


def read_keys(file: str) -> dict[str, str]:
    """From hash to name.

    Raises:
        ClipDomainError: the file cannot be read, holds no key, or a line that is none.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ClipDomainError(f"{file}: the keys cannot be read ({error}).") from error
    keys = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:  # the line itself may be a key in clear: it is not repeated
            raise ClipDomainError(
                f"{file}, line {number}: expected name:sha256; hf-clip-domain serve --new_key NAME makes one."
            )
        keys[found["hash"]] = found["name"]
    if not keys:
        raise ClipDomainError(f"{file} holds no keys; hf-clip-domain serve --new_key NAME makes one.")
    return keys


class Guard:
    """ASGI: lets in who has a key, as often as is agreed.

    Sets `scope["state"]["key"]` to the key's name. Without any keys everybody may do everything, as befits a server on
    one's own machine (`Settings.check_exposure`); with keys but no admin keys nobody administrates.
    """

    def __init__(self, app: Any, settings: Settings, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self.keys = read_keys(settings.api_keys) if settings.api_keys else {}
        self.admins = read_keys(settings.admin_keys) if settings.admin_keys else {}
        self.rate, self.burst = settings.rate_limit, settings.rate_burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # who -> what is left, when

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except RequestError as error:
                self.metrics.refused.labels(reason=error.code).inc()
                return await error.send(send)
        return await self.app(scope, receive, send)

    def _check(self, scope: dict[str, Any]) -> None:
        if scope["path"] in OPEN:
            return
        who = scope["client"][0] if scope.get("client") else "unknown"
        if self.keys:
            digest = _hash(_presented(scope["headers"]))
            admin = self.admins.get(digest)
            name = admin or self.keys.get(digest)
            if name is None:
                self._take(f"refused {who}")  # guessing is rated as well
                raise RequestError(
                    401, "A key is needed: Authorization: Bearer KEY, or x-api-key.", code="invalid_api_key"
                )
            if scope["path"].startswith(ADMIN) and admin is None:
                raise RequestError(403, "This needs an admin key.", code="admin_key_needed")
            scope.setdefault("state", {})["key"] = who = name
        self._take(who)

    def _take(self, who: str) -> None:
        """One request out of the bucket that fills with `rate` a second up to `burst`."""
        if not self.rate:
            return
        now = time.monotonic()
        left, since = self._buckets.pop(who, (float(self.burst), now))
        left = min(float(self.burst), left + (now - since) * self.rate)
        self._buckets[who] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > _ADDRESSES:
            self._buckets.popitem(last=False)
        if left < 1:
            raise RequestError(
                429,
                f"More than {self.rate:g} requests a second.",
                code="rate_limited",
                retry_after=math.ceil((1 - left) / self.rate),
            )


def _presented(headers: list[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"x-api-key":
            return value.decode("latin-1")
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip().decode("latin-1")
    return ""


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
