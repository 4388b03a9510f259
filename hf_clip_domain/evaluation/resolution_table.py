"""What a model scores at each picture size, what that costs, and which size to serve it at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

HEADINGS = ("pixels", "tokens", "R@10 (%)", "interval", "drop", "interval", "main", "ms", "a second", "MiB")


@dataclass(frozen=True)
class AtSize:
    """A model at one picture size.

    Attributes:
        size: side in pixels. tokens: patches of a picture.
        mean_recall: of Recall@10 in both directions, 0 to 1, with its 95% interval.
        metric: the domain's first figure (`Resolutions.metric`).
        drop: percentage points of mean recall below the best size, with the paired interval of the difference.
        milliseconds: for one picture by itself. pictures_per_second: in batches. Medians.
        peak_mib: the most memory that a batch takes above the loaded model.
    """

    size: int
    tokens: int
    mean_recall: float
    interval: list[float] | None
    metric: float
    drop: float
    drop_interval: list[float] | None
    milliseconds: float
    pictures_per_second: float
    peak_mib: float

    def texts(self) -> list[str]:
        """What stands in the columns after pixels and tokens."""
        return [
            f"{100 * self.mean_recall:.1f}",
            f"{100 * self.interval[0]:.1f} to {100 * self.interval[1]:.1f}" if self.interval else "",
            f"{self.drop:.1f}",
            f"{self.drop_interval[0]:+.1f} to {self.drop_interval[1]:+.1f}" if self.drop_interval else "",
            f"{self.metric:.3f}",
            f"{self.milliseconds:.1f}",
            f"{self.pictures_per_second:.1f}",
            f"{self.peak_mib:.0f}",
        ]


@dataclass(frozen=True)
class Resolutions:
    """All sizes, by rising size, and what follows from them.

    Attributes:
        native: the model's own size.
        metric: name of the domain's first figure.
        best: the size of the highest mean recall.
        recommended: the smallest size whose drop is within `budget` percentage points; fewer pixels cost less.
        area: under the curve of mean recall, as a share of the best, over the logarithm of the size, from the smallest
            to the largest: 1 for a model that no size hurts.
        batch_size: of `pictures_per_second` and `peak_mib`. device: on which.
    """

    sizes: list[AtSize]
    native: int
    metric: str
    best: int
    recommended: int
    budget: float
    area: float
    batch_size: int
    device: str

    def to_json(self) -> dict[str, Any]:
        """For `EvaluationReport.extra["resolutions"]`."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Resolutions:
        """What `to_json` gave; a number that was not finite is NaN again."""
        sizes = [
            AtSize(**{name: math.nan if value is None and name == "metric" else value for name, value in one.items()})
            for one in stored["sizes"]
        ]
        area = math.nan if stored["area"] is None else stored["area"]
        return cls(**{**stored, "sizes": sizes, "area": area})

    def table(self) -> str:
        """For the console, at most 100 columns wide: a line a size, then what follows."""
        widths = (7, 8, 10, 15, 7, 15, 8, 9, 9, 7)

        def laid_out(texts: Sequence[str]) -> str:
            return "".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))

        lines = [laid_out(HEADINGS), "-" * sum(widths)]
        for one in self.sizes:
            recall, ends, drop, drops, *others = one.texts()
            drops = f"[{drops.replace(' to ', ',')}]" if drops else ""
            ends = f"[{ends.replace(' to ', ',')}]" if ends else ""
            lines.append(laid_out([str(one.size), str(one.tokens), recall, ends, drop, drops, *others]))
        return "\n".join(["Picture sizes:", *lines, *self.notes()])

    def markdown(self) -> str:
        """A GitHub table, and what follows from it."""
        lines = ["**Picture sizes**", "", "| " + " | ".join(HEADINGS) + " |", "|" + "--:|" * len(HEADINGS)]
        lines += ["| " + " | ".join([str(one.size), str(one.tokens), *one.texts()]) + " |" for one in self.sizes]
        return "\n".join([*lines, "", *self.notes()])

    def notes(self) -> list[str]:
        """What the columns are, the area, and the verdict."""
        return [
            f"R@10: the mean of both directions (%); drop: points below the best size; main: {self.metric}.",
            f"Vision tower alone, on {self.device}: ms for one picture, pictures a second and peak MiB in batches of "
            f"{self.batch_size}.",
            f"Area under R@10 over the logarithm of the size, as a share of the best: {self.area:.3f}.",
            self.verdict(),
        ]

    def verdict(self) -> str:
        """The recommendation in a sentence or two, with what the test set cannot tell."""
        chosen = next(one for one in self.sizes if one.size == self.recommended)
        best = next(one for one in self.sizes if one.size == self.best)
        budget = f"{self.budget:g} point{'' if self.budget == 1 else 's'}"
        if chosen is best:
            smaller = [one for one in self.sizes if one.size < best.size]
            if not smaller:
                return f"Serve at {best.size} pixels: the smallest of these sizes is the best."
            text = (
                f"Serve at {best.size} pixels: every smaller of these sizes loses more than {budget} of mean Recall@10."
            )
            unsure = [str(one.size) for one in smaller if one.drop_interval is None or one.drop_interval[0] <= 0]
            return text + (f" At {', '.join(unsure)} the loss may be chance." if unsure else "")
        gain = chosen.pictures_per_second / best.pictures_per_second
        text = (
            f"Serve at {chosen.size} pixels: {chosen.drop:.1f} points of mean Recall@10 below the best size "
            f"({best.size}), within the budget of {budget}, at {gain:.1f} times its pictures a second."
        )
        if chosen.drop_interval is None:
            return text + " Too few independent pairs to say how sure that is."
        if chosen.drop_interval[1] > self.budget:
            text += f" With these pairs a drop of up to {chosen.drop_interval[1]:.1f} points cannot be excluded."
        return text


def area(scores: dict[int, float]) -> float:
    """Under the scores as shares of the best, over the logarithm of the size, divided by its span (trapezoids)."""
    sizes, best = sorted(scores), max(scores.values())
    if not best > 0:
        return math.nan
    if len(sizes) == 1:
        return 1.0
    logs, shares = np.log(sizes), np.array([scores[size] / best for size in sizes])
    return float(np.trapezoid(shares, logs) / (logs[-1] - logs[0]))
