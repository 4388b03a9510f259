"""Everything about a server that can be chosen, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from hf_clip_domain.errors import ClipDomainError

MIB = 2**20
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
COMPILE = ("auto", "on", "off")


@dataclass(frozen=True)
class Settings:
    """A server, described.

    Attributes:
        model: folder, Hub id, `starter`, or registry URI `models:/name@alias`.
        name: what requests call the model, and answers say.
        device: `cuda`, `mps` or `cpu`; by default the first that there is.
        precision: `fp32`, which serves what `ClipEmbedder` gives offline; `bf16`, `fp16`, or `auto`: a lower one where
            it is faster and ranks alike.
        compile: `torch.compile`: `on`, `off`, or `auto` (tried on CUDA); kept only where it is faster and ranks alike.
        threads: of torch on the CPU; 0 leaves it to torch.
        workers: threads that decode pictures and tokenise texts; 0: one a core, eight at most.

        host, port: where to listen; port 0 is any free one.
        api_keys, admin_keys: files of hashed keys, see `auth`.
        without_keys: listen beyond this machine without keys.
        rate_limit: requests a second for each key, or each address where there are no keys; 0 is no limit.
        rate_burst: requests that may come at once above it.

        max_batch: texts or pictures in one forward pass.
        batch_seconds: how long one forward pass may take; batches shrink to fit.
        linger_ms: how long a free engine waits for company, at most, when it was busy just before.
        queue: texts, and pictures, that may wait; further requests get 503.
        timeout: seconds a request may take, its own reading included.
        drain_seconds: after SIGTERM, how long requests are still taken while clients are told to leave.

        max_body: bytes of a request.
        max_bodies: bytes of all requests at once.
        max_items: texts or pictures of a request.
        max_labels: labels of a classification.
        max_characters: of a text.
        max_image: bytes of a picture.
        max_pixels: of a picture, once decoded.
        url_hosts: hosts, `name` or `name:port`, from which a request may have a picture fetched.
        url_timeout: seconds for that.

        cache: bytes of embeddings kept in memory; 0 is none.
        disk_cache: file of the cache on disk.
        disk_cache_bytes: its size.

        gallery: folder, file or Hub data set of the pictures to search.
        max_gallery: pictures in the gallery, at most.
        gallery_bytes: bytes of the pictures added by requests, which are kept in memory.
        watch_seconds: how often the registry alias is looked up; 0 is never.

        statistics: folder into which statistics of requests are written.
        statistics_window: requests of a file.
        drift: folder that `hf-clip-domain monitor --output` writes, whose verdict is shown.
    """

    model: str = "starter"
    name: str = ""
    device: str | None = None
    precision: str = "fp32"
    compile: str = "auto"
    threads: int = 0
    workers: int = 0

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: str | None = None
    admin_keys: str | None = None
    without_keys: bool = False
    rate_limit: float = 0.0
    rate_burst: int = 32

    max_batch: int = 64
    batch_seconds: float = 1.0
    linger_ms: float = 4.0
    queue: int = 1024
    timeout: float = 30.0
    drain_seconds: float = 1.0

    max_body: int = 32 * MIB
    max_bodies: int = 512 * MIB
    max_items: int = 256
    max_labels: int = 1000
    max_characters: int = 8192
    max_image: int = 10 * MIB
    max_pixels: int = 32_000_000
    url_hosts: tuple[str, ...] = ()
    url_timeout: float = 5.0

    cache: int = 256 * MIB
    disk_cache: str | None = None
    disk_cache_bytes: int = 1024 * MIB

    gallery: str | None = None
    max_gallery: int = 1_000_000
    gallery_bytes: int = 512 * MIB
    watch_seconds: float = 60.0

    statistics: str | None = None
    statistics_window: int = 500
    drift: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_batch", "queue", "max_body", "max_items", "max_labels", "max_characters", "max_image"):
            self._at_least(name, 1)
        for name in (
            "max_pixels",
            "max_bodies",
            "disk_cache_bytes",
            "max_gallery",
            "gallery_bytes",
            "rate_burst",
            "statistics_window",
        ):
            self._at_least(name, 1)
        for name in ("threads", "workers", "rate_limit", "linger_ms", "drain_seconds", "cache", "watch_seconds"):
            self._at_least(name, 0)
        for name in ("batch_seconds", "timeout", "url_timeout"):
            if not getattr(self, name) > 0:
                raise ClipDomainError(f"--{name} {getattr(self, name)}: expected more than 0 seconds.")
        if not 0 <= self.port <= 65535:
            raise ClipDomainError(f"--port {self.port}: expected 0 (any free one) to 65535.")
        for name, known in (("precision", PRECISIONS), ("compile", COMPILE)):
            if getattr(self, name) not in known:
                raise ClipDomainError(f"--{name} {getattr(self, name)}: expected one of {', '.join(known)}.")
        if self.queue < self.max_items:
            raise ClipDomainError(
                f"--queue {self.queue} is less than --max_items {self.max_items}: a whole request must fit the queue."
            )
        if self.admin_keys and not self.api_keys:
            raise ClipDomainError("--admin_keys without --api_keys: give both, or neither.")
        if not self.name:
            object.__setattr__(self, "name", default_name(self.model))

    @property
    def pool_size(self) -> int:
        """Threads that prepare what requests bring."""
        return self.workers or max(2, min(8, os.cpu_count() or 1))

    def check_exposure(self) -> None:
        """Refuse to answer strangers unless told to.

        Raises:
            ClipDomainError: the host is reachable from other machines and there are no keys.
        """
        if not self.api_keys and not self.without_keys and not _is_loopback(self.host):
            raise ClipDomainError(
                f"--host {self.host} answers other machines, and there are no keys: give --api_keys FILE "
                "(hf-clip-domain serve --new_key NAME makes one), or --without_keys where something else guards it."
            )

    def _at_least(self, name: str, least: int) -> None:
        if not getattr(self, name) >= least:
            raise ClipDomainError(f"--{name} {getattr(self, name)}: expected at least {least}.")


def default_name(model: str) -> str:
    """`outputs/medical/ -> medical`, `openai/clip-vit-base-patch32` stays, `models:/clip@prod -> clip`."""
    if model.startswith("models:/"):
        return re.split(r"[@/]", model.removeprefix("models:/"))[0]
    return Path(model).resolve().name if Path(model).is_dir() else model


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def fields() -> dict[str, dataclasses.Field]:
    """The settings by name."""
    return {field.name: field for field in dataclasses.fields(Settings)}
