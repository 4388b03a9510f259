"""A client of the server, on httpx and numpy alone."""

from hf_clip_domain.serving.client.answers import Classification, Hit, PairScore, State
from hf_clip_domain.serving.client.clients import AsyncClient, Client
from hf_clip_domain.serving.client.errors import (
    OverloadedError,
    RefusedError,
    ServingError,
    TimedOutError,
    UnauthorizedError,
    UnreachableError,
)
from hf_clip_domain.serving.client.retries import Retries

__all__ = [
    "AsyncClient",
    "Classification",
    "Client",
    "Hit",
    "OverloadedError",
    "PairScore",
    "RefusedError",
    "Retries",
    "ServingError",
    "State",
    "TimedOutError",
    "UnauthorizedError",
    "UnreachableError",
]
