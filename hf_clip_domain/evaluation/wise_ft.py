"""How far to go from the base to the tuned model: the best at the domain that forgets no more than a budget.

Everything here is measured on validation splits, of the domain and of the probe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_clip_domain.errors import ClipDomainError

COARSE = (0.0, 0.25, 0.5, 0.75, 1.0)
HALVINGS = 3  # the budget's edge is then known to 1/32


@dataclass(frozen=True)
class Point:
    """A merged model: its share of the tuned one, and the mean Recall@10 on the domain and on the probe, 0 to 1."""

    alpha: float
    target: float
    general: float


@dataclass(frozen=True)
class Sweep:
    """What was tried between base and tuned model, and what was chosen.

    Attributes:
        points: by rising alpha; the first is the base, at 0.
        budget: percentage points of the probe's mean Recall@10 that may be lost against the base.
        best: the point with the highest target of those within the budget; of equals the one that keeps more, then
            the one nearest to the base. Its alpha is 0 when nothing within the budget beats the base.
    """

    points: list[Point]
    budget: float
    best: Point

    def lost(self, point: Point) -> float:
        """Percentage points of the probe's mean Recall@10 below the base's."""
        return 100 * (self.points[0].general - point.general)

    def to_json(self) -> dict[str, Any]:
        return {"alpha": self.best.alpha, "forgetting_budget": self.budget, "points": list(map(asdict, self.points))}

    def table(self) -> str:
        """For the console: a line a point, the chosen one marked."""
        lines = [f"{'alpha':>7}  {'domain R@10 (%)':>15}  {'general R@10 (%)':>16}  {'lost':>6}"]
        for point in self.points:
            mark = "  chosen" if point is self.best else "" if self.lost(point) <= self.budget else "  over the budget"
            lines.append(
                f"{point.alpha:7.3f}  {100 * point.target:15.2f}  {100 * point.general:16.2f}  "
                f"{self.lost(point):6.2f}{mark}"
            )
        return "\n".join(lines)

    def verdict(self) -> str:
        """The choice in one sentence."""
        base, best = self.points[0], self.best
        if best.alpha == 0:
            return (
                f"No merged model within {self.budget:g} points of forgetting beats the base on the validation split: "
                "alpha 0, the base itself, is kept. A larger --forgetting_budget allows more."
            )
        return (
            f"alpha {best.alpha:g}: on the validation splits the domain's mean Recall@10 goes from {base.target:.1%} to "
            f"{best.target:.1%} and the general one from {base.general:.1%} to {best.general:.1%} "
            f"({self.lost(best):.2f} points lost, {self.budget:g} allowed)."
        )


def parse_alphas(text: str) -> list[float] | None:
    """`"0,0.5,1"` as numbers; `None` for `"auto"`.

    Raises:
        ClipDomainError: anything else.
    """
    if text == "auto":
        return None
    try:
        alphas = [float(word) for word in text.split(",")]
    except ValueError:
        alphas = []
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise ClipDomainError(f"--alphas {text}: expected 'auto', or numbers from 0 to 1 such as 0,0.25,0.5,1.")
    return alphas


def sweep(score: Callable[[float], Point], budget: float, alphas: Sequence[float] | None = None) -> Sweep:
    """Score merged models and choose.

    Args:
        score: builds and scores the model at an alpha; the dear part.
        budget: percentage points of the probe's mean Recall@10 that may be lost.
        alphas: what to try, besides 0; `None` tries five, then halves the interval that holds the budget's edge (what
            is lost grows along the way) three times: eight models at most.
    """
    found = {alpha: score(alpha) for alpha in sorted({0.0, *(COARSE if alphas is None else alphas)})}

    def within(alpha: float) -> bool:
        return _within(found[0.0], found[alpha], budget)

    for _ in range(HALVINGS if alphas is None else 0):
        order = sorted(found)
        edges = [pair for pair in zip(order, order[1:], strict=False) if within(pair[0]) and not within(pair[1])]
        if not edges:
            break
        middle = sum(edges[-1]) / 2
        found[middle] = score(middle)
    return choose([found[alpha] for alpha in sorted(found)], budget)


def choose(points: list[Point], budget: float) -> Sweep:
    """The choice among `points`, which are by rising alpha and begin with the base: see `Sweep.best`."""
    allowed = [point for point in points if _within(points[0], point, budget)]
    best = max(allowed, key=lambda point: (point.target, point.general, -point.alpha))
    return Sweep(points, budget, best)


def _within(base: Point, point: Point, budget: float) -> bool:
    # Recall is a share of queries: a budget of 2 points shall allow 2 of 100, in spite of rounding.
    return 100 * (base.general - point.general) <= budget + 1e-9
