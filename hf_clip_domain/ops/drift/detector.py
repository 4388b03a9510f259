"""Windows tested one after another, with a stated chance of any false alarm in all of them.

Every window is tested alone, and pooled with those before it, which finds a small or slow drift. Of the chance of a false
alarm that is allowed over the horizon, each of these looks gets the same part; by the union bound they add up, however
much the looks depend on each other. They do: all meet the same reference, whose own deviation from the traffic to come is
in every one of them. Tests that multiply evidence from window to window (a product of e-values, a CUSUM of p values) would
add up that one deviation and end in an alarm for certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.ops.drift.calibration import joint_p_values, smallest_p_value
from hf_clip_domain.ops.drift.reference import Reference
from hf_clip_domain.ops.drift.windows import Window, pooled


@dataclass(frozen=True)
class Rule:
    """When to raise an alarm.

    Attributes:
        false_alarms: the chance of any false alarm within the horizon.
        horizon: how many windows that is for; only the newest so many are judged.
        spans: how many windows are looked at together, ending with the newest.
    """

    false_alarms: float = 0.05
    horizon: int = 20
    spans: tuple[int, ...] = (1, 4)

    def __post_init__(self) -> None:
        if not 0 < self.false_alarms < 1:
            raise ClipDomainError(f"--false_alarms {self.false_alarms:g}: expected a chance between 0 and 1.")
        if self.horizon < 1:
            raise ClipDomainError(f"--horizon {self.horizon}: expected at least one window.")

    @property
    def level(self) -> float:
        """What the adjusted p value of a look must not exceed."""
        return self.false_alarms / (self.horizon * len(self.spans))


@dataclass(frozen=True)
class Test:
    """One test of one look: scaled statistic, rows of the window, p value, and that adjusted for all tests of the look."""

    statistic: float
    rows: int
    p: float
    adjusted: float


@dataclass(frozen=True)
class Look:
    """The tests of some windows together, and which of them differ from the reference."""

    windows: tuple[str, ...]
    ended: float
    requests: int
    tests: dict[str, Test]
    drifted: tuple[str, ...]


def look(reference: Reference, windows: Sequence[Window], level: float) -> Look:
    """Test windows, pooled, at a level for all tests together."""
    window = pooled(windows)
    observed = reference.observe(window)
    tests = {}
    if observed:
        columns = [list(reference.tests).index(name) for name in observed]
        statistics = np.array([statistic for statistic, _ in observed.values()])
        plain, adjusted = joint_p_values(reference.null[:, columns], statistics)
        for place, (name, (statistic, rows)) in enumerate(observed.items()):
            tests[name] = Test(statistic, rows, float(plain[place]), float(adjusted[place]))
    drifted = tuple(name for name, test in tests.items() if test.adjusted <= level)
    return Look(tuple(one.name for one in windows), window.ended, window.requests, tests, drifted)


def check_rule(reference: Reference, rule: Rule) -> None:
    """Refuse a rule whose level no p value could reach.

    Raises:
        ClipDomainError: says how long a horizon the reference has resamples for.
    """
    least = smallest_p_value(len(reference.null), len(reference.tests))
    if rule.level < least:
        longest = int(rule.false_alarms / (least * len(rule.spans)))
        raise ClipDomainError(
            f"--horizon {rule.horizon} with --false_alarms {rule.false_alarms:g} asks for p values of {rule.level:.1g}, and "
            f"{len(reference.null):,} resamples go down to {least:.1g}: give --horizon {max(1, longest)} or less, or "
            "larger --false_alarms."
        )


def judge(reference: Reference, windows: Sequence[Window], rule: Rule) -> list[Look]:
    """All looks at the newest `rule.horizon` windows, the oldest first.

    Raises:
        ClipDomainError: see `check_rule`.
    """
    check_rule(reference, rule)
    windows = windows[-rule.horizon :]
    return [
        look(reference, windows[end - span : end], rule.level)
        for end in range(1, len(windows) + 1)
        for span in rule.spans
        if span <= end
    ]
