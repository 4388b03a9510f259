"""An experiment's runs as one HTML page: for every domain the table, what differed, and target against retained."""

from __future__ import annotations

import math
from html import escape

from hf_clip_domain.charts import axes, scale, ticks
from hf_clip_domain.evaluation.compare import is_share
from hf_clip_domain.evaluation.html_style import STYLE
from hf_clip_domain.ops.experiment import Experiment, Group, Run, shown
from hf_clip_domain.page import whole_page

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 300, 56, 40


def experiment_page(found: Experiment) -> str:
    """The page."""
    sections = "".join(_section(group, found.metric) for group in found.groups)
    runs = sum(len(group.runs) for group in found.groups)
    metric = escape(found.metric) + (" (%)" if is_share(found.metric) else "")
    body = (
        f"<header><h1>Runs of {escape(found.name)}</h1><p>{runs} finished runs by {metric}, with 95% intervals; those on "
        f"the same data may be compared.</p></header><main>{sections}</main>"
    )
    return whole_page(f"Runs of {found.name}", body, style=STYLE)


def _section(group: Group, metric: str) -> str:
    names = (metric, "base", "retained (%)", *group.differing)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for place, run in enumerate(group.runs):
        best = ' class="chosen"' if place == 0 and len(group.runs) > 1 else ""
        score, _, ends = shown(run.score, run.interval, metric=metric).partition(" ")
        cells = [f"{score}<small>{escape(ends)}</small>", shown(run.base, metric=metric), shown(run.retained)]
        cells += [escape(run.params.get(name, "-")) for name in group.differing]
        mark = "<small>Pareto</small>" if run.run_id in group.pareto else ""
        data = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr{best}><th scope="row">{escape(run.name)}{mark}</th>{data}</tr>')
    return (
        f'<section><h2>{escape(group.title)}</h2><div class="wide"><table class="figures"><thead><tr><td></td>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="soft">The best run is shaded. Columns after “retained” are the settings that differ.</p>'
        f"{_chart(group, metric)}</section>"
    )


def _chart(group: Group, metric: str) -> str:
    """A dot a run with a probe; those that no other surpasses are joined."""
    runs = [run for run in group.runs if math.isfinite(run.retained)]
    if len(runs) < 2:
        return ""
    x_ticks = ticks(min(run.retained for run in runs), max(run.retained for run in runs))
    y_ticks = ticks(min(run.score for run in runs), max(run.score for run in runs))
    x_at = scale(x_ticks[0], x_ticks[-1], _LEFT, _WIDTH - 20)
    y_at = scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, 14)
    share = is_share(metric)
    marks = list(axes(y_ticks, y_at, lambda value: f"{100 * value:.3g}%" if share else f"{value:.3g}"))
    for value in x_ticks:
        marks.append(f'<text x="{x_at(value):.1f}" y="{_HEIGHT - 20}" text-anchor="middle">{100 * value:.3g}%</text>')
    front = sorted((run for run in runs if run.run_id in group.pareto), key=lambda run: run.retained)
    path = " ".join(f"{x_at(run.retained):.1f},{y_at(run.score):.1f}" for run in front)
    marks.append(f'<polyline class="c1" fill="none" stroke="var(--c)" stroke-width="2" points="{path}"/>')
    marks += [_dot(run, run.run_id in group.pareto, x_at(run.retained), y_at(run.score)) for run in runs]
    marks.append(f'<text x="{_WIDTH - 20}" y="{_HEIGHT - 3}" text-anchor="end">general recall retained</text>')
    label = f"{metric} and general recall retained of {len(runs)} runs, {len(front)} of them on the Pareto front"
    return (
        f'<div class="charts"><figure><figcaption>{escape(metric)} against what is kept</figcaption>'
        '<ul class="legend"><li class="c1">surpassed by no other</li><li class="c0">other runs</li></ul>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="12" fill="currentColor" role="img" '
        f'aria-label="{escape(label)}">{"".join(marks)}</svg></figure></div>'
    )


def _dot(run: Run, front: bool, x: float, y: float) -> str:
    return (
        f'<circle class="{"c1" if front else "c0"}" cx="{x:.1f}" cy="{y:.1f}" r="5" fill="var(--c)"/>'
        f'<text x="{min(x + 9, _WIDTH - 90):.1f}" y="{y - 7:.1f}" font-size="11">{escape(run.name)}</text>'
    )
