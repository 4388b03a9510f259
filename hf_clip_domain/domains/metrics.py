"""What a domain can ask for beyond retrieval: the settings of each metric, as its YAML file names them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

POINT = re.compile(
    r"(sensitivity|specificity|precision|false_alarm_rate|miss_rate)"
    r"@(sensitivity|recall|miss_rate|specificity|false_alarm_rate)=(0\.\d+)"
)


@dataclass(frozen=True)
class Detection:
    """Is anything wrong in the picture? All labels but the normal ones count as a finding.

    Attributes:
        normal: the labels of pictures with nothing to find.
        points: operating points to report, such as `specificity@sensitivity=0.9`.
    """

    normal: tuple[str, ...]
    points: tuple[str, ...] = ("specificity@sensitivity=0.9",)
    metric: Literal["detection"] = "detection"


@dataclass(frozen=True)
class PerClass:
    """Every label against all others, and which labels are taken for which.

    Attributes:
        at_least: pictures that a label needs to be reported by itself.
    """

    at_least: int = 10
    metric: Literal["per_class"] = "per_class"


@dataclass(frozen=True)
class Swaps:
    """Does a picture prefer its caption to the same one with words exchanged?

    Attributes:
        words: pairs of words that contradict each other, such as left and right.
        title: name of the group in the report.
    """

    words: tuple[tuple[str, str], ...]
    title: str = "swaps"
    metric: Literal["swaps"] = "swaps"


@dataclass(frozen=True)
class Within:
    """Retrieval among pairs of one group (hard negatives), and among pairs of all other groups.

    Attributes:
        column: which column says what belongs together.
    """

    column: Literal["group", "label"] = "group"
    metric: Literal["within"] = "within"


@dataclass(frozen=True)
class CaptionClasses:
    """Zero-shot classification where the captions name the class, such as the type of a chart.

    Attributes:
        classes: name for the prompt -> words of which a caption holds one; captions with two classes are not asked.
        title: name of the group in the report.
    """

    classes: dict[str, tuple[str, ...]]
    title: str = "caption_classes"
    metric: Literal["caption_classes"] = "caption_classes"


METRICS = {kind.metric: kind for kind in (Detection, PerClass, Swaps, Within, CaptionClasses)}
DomainMetric = Detection | PerClass | Swaps | Within | CaptionClasses


def problem_with(metric: DomainMetric) -> str | None:
    """What is wrong with the settings, as `what: expected ...`, or nothing."""
    if isinstance(metric, Detection):
        if not metric.normal:
            return "normal: expected at least one label"
        wrong = [point for point in metric.points if not POINT.fullmatch(point)]
        if wrong:
            return f"points: expected such as specificity@sensitivity=0.9, found {wrong[0]!r}"
    if isinstance(metric, (Swaps, CaptionClasses)) and not re.fullmatch(r"[a-z][a-z0-9_]*", metric.title):
        return f"title: expected a small word such as laterality, found {metric.title!r}"
    if isinstance(metric, Swaps) and (not metric.words or any(one == other for one, other in metric.words)):
        return "words: expected pairs of two different words such as [left, right]"
    if isinstance(metric, CaptionClasses) and len(metric.classes) < 2:
        return "classes: expected at least two"
    return None
