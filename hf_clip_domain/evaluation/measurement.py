"""What one model scored: the figures, how they vary over resamples, and what could not be measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Measurement:
    """Figures of one model on one set of pairs.

    Attributes:
        metrics: flat, as in `evaluation.json`.
        replicates: key -> its value on every bootstrap resample `(replicates,)`; two models measured on the same
            pairs share the resamples. Not every metric has them.
        details: what is no number and belongs in the report: confusion matrices, lists of rows. Fit for JSON.
        skipped: what was asked for and not measured -> why.
        clusters: name of a group of metrics -> the independent clusters that were resampled.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    replicates: dict[str, np.ndarray] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    clusters: dict[str, int] = field(default_factory=dict)

    def prefixed(self, name: str) -> Measurement:
        """The same with `name/` before every key."""
        if not name:
            return self

        def under(values: dict[str, Any]) -> dict[str, Any]:
            return {f"{name}/{key}" if key else name: value for key, value in values.items()}

        return Measurement(
            under(self.metrics),
            under(self.replicates),
            under(self.details),
            under(self.skipped),
            under(self.clusters),
        )


def joined(parts: Iterable[Measurement]) -> Measurement:
    """All of them as one; keys are expected to differ."""
    whole = Measurement()
    for part in parts:
        for name in ("metrics", "replicates", "details", "skipped", "clusters"):
            getattr(whole, name).update(getattr(part, name))
    return whole
