"""What the server says, as arrays and dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PairScore:
    """The similarity of one pair; `None` with the reason where its picture could not be read."""

    score: float | None
    error: str | None


@dataclass(frozen=True)
class Classification:
    """Zero-shot classes of pictures.

    Attributes:
        labels: of the columns.
        probabilities: `(n, c)` float32; rows sum to 1.
        calibrated: whether the temperature was fitted to held-out pairs.
    """

    labels: tuple[str, ...]
    probabilities: np.ndarray
    calibrated: bool

    @property
    def best(self) -> list[str]:
        """The likeliest label of each picture."""
        return [self.labels[place] for place in self.probabilities.argmax(axis=1)]


@dataclass(frozen=True)
class Hit:
    """A picture of the server's gallery."""

    id: str
    score: float
    metadata: dict[str, Any]


@dataclass(frozen=True)
class State:
    """Whether a server takes requests, why not, and its model."""

    ready: bool
    status: str
    model: dict[str, Any]
