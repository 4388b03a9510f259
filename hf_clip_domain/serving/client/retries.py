"""How often and when a request is sent again: never sooner than the server asks, and never all clients at once."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

from hf_clip_domain.errors import ClipDomainError

AGAIN = frozenset({429, 503})


@dataclass(frozen=True)
class Retries:
    """Waits between the attempts of one request: exponential, with full jitter, on top of what `Retry-After` asks.

    What the client asks for changes nothing on the server, so that it may be asked again; a request that timed out is
    not, since the server may still be at it.

    Args:
        attempts: in all, the first one included.
        base: seconds; before attempt n + 1 up to `base * 2**(n - 1)` are drawn.
        longest: seconds of one wait; a server that asks for more gets no further attempt.
        draw: of random numbers from 0 to 1.

    Raises:
        ClipDomainError: fewer than one attempt, or negative seconds.
    """

    attempts: int = 5
    base: float = 0.25
    longest: float = 30.0
    draw: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ClipDomainError(f"attempts is {self.attempts}; expected at least 1.")
        if self.base < 0 or self.longest < 0:
            raise ClipDomainError(f"base is {self.base} and longest {self.longest}; expected seconds of at least 0.")

    def wait(self, attempt: int, retry_after: float | None) -> float | None:
        """Seconds to wait after `attempt` (from 1) failed; `None` to give up."""
        if attempt >= self.attempts or (retry_after or 0) > self.longest:
            return None
        jitter = self.draw.uniform(0, min(self.longest, self.base * 2 ** (attempt - 1)))
        return min(self.longest, (retry_after or 0) + jitter)


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response's `Retry-After` asks for, given in seconds or as a date; `None` without one."""
    said = headers.get("retry-after", "").strip()
    if not said:
        return None
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return None
