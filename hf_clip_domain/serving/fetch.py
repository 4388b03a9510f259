"""Pictures by address: only from hosts that the server's owner listed, and never from a private network.

The name is resolved here, every address checked, and the connection made to the checked address, so that a name that
resolves differently a moment later leads nowhere else. Redirections are not followed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from urllib.parse import urlsplit

from hf_clip_domain._optional import require
from hf_clip_domain.serving.errors import RequestError
from hf_clip_domain.serving.settings import Settings


class Fetcher:
    """Fetches pictures for requests.

    Args:
        settings: `url_hosts`, `url_timeout` and `max_image` count.
    """

    def __init__(self, settings: Settings) -> None:
        self.hosts = frozenset(host.lower().rstrip(".") for host in settings.url_hosts)
        self.timeout, self.most = settings.url_timeout, settings.max_image

    async def fetch(self, address: str) -> bytes:
        """The bytes at an address.

        Raises:
            RequestError: 403 not allowed, 400 not to be had, 413 too large.
        """
        try:
            parts = urlsplit(address)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError as error:
            raise RequestError(400, "The picture's address is malformed.", code="bad_url") from error
        named = host in self.hosts if port is None else f"{host}:{port}" in self.hosts
        if not named or parts.username is not None:
            raise RequestError(
                403, "Pictures are not fetched from this address; send the picture itself.", code="url_not_allowed"
            )
        try:
            async with asyncio.timeout(self.timeout):
                target = await self._resolve(host, port or (443 if parts.scheme == "https" else 80))
                return await self._get(parts, host, target)
        except TimeoutError as error:
            raise _unreachable() from error

    async def _resolve(self, host: str, port: int) -> str:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise _unreachable() from error
        addresses = [entry[4][0] for entry in found]
        if not all(is_public(address) for address in addresses):
            raise RequestError(403, "The picture's address leads into a private network.", code="url_not_allowed")
        return addresses[0]

    async def _get(self, parts, host: str, target: str) -> bytes:
        httpx = require("httpx", extra="serve")
        literal = f"[{target}]" if ":" in target else target
        port = f":{parts.port}" if parts.port else ""
        url = f"{parts.scheme}://{literal}{port}{parts.path or '/'}" + (f"?{parts.query}" if parts.query else "")
        # The certificate is checked against the name although the connection goes to the number.
        options = {"headers": {"host": host + port}, "extensions": {"sni_hostname": host}}
        async with httpx.AsyncClient(follow_redirects=False, timeout=self.timeout, trust_env=False) as client:
            try:
                async with client.stream("GET", url, **options) as response:
                    if response.status_code != 200:
                        raise _unreachable()
                    data = bytearray()
                    async for chunk in response.aiter_raw():
                        data += chunk
                        if len(data) > self.most:
                            raise RequestError(
                                413, f"The picture is larger than {self.most:,} bytes.", code="picture_too_large"
                            )
                    return bytes(data)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise _unreachable() from error


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return found.is_global and not found.is_multicast and (mapped is None or mapped.is_global)


def _unreachable() -> RequestError:
    return RequestError(400, "The picture could not be fetched from its address.", code="url_unreachable")
