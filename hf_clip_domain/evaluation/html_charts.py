"""Charts of a report as inline SVG: recall with its intervals, and the way from base to tuned model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from hf_clip_domain.charts import axes, scale, ticks
from hf_clip_domain.evaluation.report import EvaluationReport
from hf_clip_domain.evaluation.tables import DIRECTIONS

KS = (1, 5, 10)
_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 520, 84, 52, 10, 40


def recall_chart(report: EvaluationReport, direction: str) -> str:
    """Recall at 1, 5 and 10 of a direction: before and after as dots with their intervals, chance as a tick."""
    keys = {f"Recall@{k}": f"{direction}/recall@{k}" for k in KS}
    keys = {name: key for name, key in keys.items() if math.isfinite(report.after.get(key, math.nan))}
    height = _TOP + _ROW * len(keys) + 24
    x_at = scale(0, 1, _LEFT, _WIDTH - _RIGHT)
    marks = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = x_at(share)
        marks.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - 24}" stroke="currentColor" stroke-opacity="0.2"/>'
            f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{100 * share:.0f}%</text>'
        )
    for number, (name, key) in enumerate(keys.items()):
        y = _TOP + _ROW * (number + 0.5)
        marks.append(f'<text x="0" y="{y + 4:.1f}" class="ink">{name}</text>')
        marks += _recall_row(report, key, y, x_at)
    title = DIRECTIONS[direction].replace("->", "→")
    shown = ", ".join(f"{name} {100 * report.after[key]:.1f}%" for name, key in keys.items())
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {height}" font-size="13" '
        f'fill="currentColor" role="img" aria-label="{escape(title)}: {escape(shown)}">{"".join(marks)}</svg></figure>'
    )


def _recall_row(report: EvaluationReport, key: str, y: float, x_at) -> Iterator[str]:
    chance = report.after.get(key.replace("/recall@", "/chance_recall@"))
    if chance is not None and math.isfinite(chance):
        x = x_at(chance)
        yield f'<line class="c3" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 13:.1f}" y2="{y + 13:.1f}" stroke="var(--c)" '
        yield 'stroke-width="2" stroke-dasharray="3 2"/>'
    sides = [("before", report.before, "cb", y - 6), ("after", report.after, "c0", y + 6)]
    for side, metrics, kind, line in sides if report.before else [("after", report.after, "c0", y)]:
        value = metrics.get(key, math.nan)
        if not math.isfinite(value):
            continue
        low, high = report.intervals.get(side, {}).get(key, [value, value])
        yield f'<line class="{kind}" x1="{x_at(low):.1f}" x2="{x_at(high):.1f}" y1="{line:.1f}" y2="{line:.1f}" '
        yield 'stroke="var(--c)" stroke-width="5" stroke-opacity="0.35" stroke-linecap="round"/>'
        yield f'<circle class="{kind}" cx="{x_at(value):.1f}" cy="{line:.1f}" r="5" fill="var(--c)"/>'
        end = max(x_at(high), x_at(value)) + 10
        yield f'<text x="{end:.1f}" y="{line + 4.5:.1f}"{" class=ink" if side == "after" else ""}>{100 * value:.1f}</text>'


def merging_chart(points: Sequence[Mapping[str, Any]], chosen: float, budget: float) -> str:
    """The domain against what is kept of general pairs, a dot a merged model, with the budget as an upright line.

    Args:
        points: `alpha`, `target` and `general` (shares), by rising alpha, the base first.
        chosen: the alpha that was taken.
        budget: percentage points that may be lost.
    """
    width, height, left, bottom = 640, 300, 56, 40
    floor = points[0]["general"] - budget / 100
    xs, ys = [point["general"] for point in points], [point["target"] for point in points]
    x_ticks, y_ticks = ticks(min(*xs, floor), max(*xs, floor)), ticks(min(ys), max(ys))
    x_at = scale(x_ticks[0], x_ticks[-1], left, width - 20)
    y_at = scale(y_ticks[0], y_ticks[-1], height - bottom, 14)
    marks = list(axes(y_ticks, y_at, lambda value: f"{100 * value:.3g}%"))
    for value in x_ticks:
        marks.append(
            f'<text x="{x_at(value):.1f}" y="{height - 20}" text-anchor="middle">{f"{100 * value:.3g}%"}</text>'
        )
    x = x_at(floor)
    marks.append(
        f'<line class="c3" x1="{x:.1f}" x2="{x:.1f}" y1="14" y2="{height - bottom}" stroke="var(--c)" '
        'stroke-width="1.5" stroke-dasharray="5 4"/>'
    )
    path = " ".join(f"{x_at(a):.1f},{y_at(b):.1f}" for a, b in zip(xs, ys, strict=True))
    marks.append(f'<polyline class="c0" fill="none" stroke="var(--c)" stroke-width="2" points="{path}"/>')
    for point in points:
        x, y, taken = x_at(point["general"]), y_at(point["target"]), point["alpha"] == chosen
        marks.append(
            f'<circle class="{"c1" if taken else "c0"}" cx="{x:.1f}" cy="{y:.1f}" r="{7 if taken else 4}" fill="var(--c)"/>'
            f'<text x="{x + 9:.1f}" y="{y - 7:.1f}" font-size="11">{point["alpha"]:.3g}</text>'
        )
    marks.append(f'<text x="{width - 20}" y="{height - 3}" text-anchor="end">general mean Recall@10</text>')
    legend = (
        '<ul><li class="c0">merged models, by their share of the tuned one</li><li class="c1">chosen</li>'
        '<li class="c3">budget</li></ul>'
    )
    label = f"Domain and general recall of {len(points)} merged models; alpha {chosen:.3g} was chosen"
    return (
        f"<figure><figcaption>Domain mean Recall@10 against what is kept</figcaption>{legend}<svg "
        f'viewBox="0 0 {width} {height}" font-size="12" fill="currentColor" role="img" aria-label="{escape(label)}">'
        f"{''.join(marks)}</svg></figure>"
    )
