"""A comparison of models as one HTML page: the matrix, and every difference with whether it is real."""

from __future__ import annotations

from html import escape

from hf_clip_domain.evaluation.compare import Comparison
from hf_clip_domain.evaluation.html_style import STYLE
from hf_clip_domain.page import whole_page


def comparison_page(found: Comparison) -> str:
    """The page: scores with their intervals, and below them the differences, in bold where they are real."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in found.datasets)
    rows = []
    for model in found.models:
        cells = "".join(
            f"<td>{found.number(found.scores[model][name])}"
            f"<small>{escape(found.ends(found.intervals[model][name]))}</small></td>"
            for name in found.datasets
        )
        rows.append(f'<tr><th scope="row">{escape(model)}</th>{cells}</tr>')
    body = (
        f"<header><h1>Models compared</h1><p>{escape(found.heading())}.</p></header><main><section><h2>Scores</h2>"
        f'<div class="wide"><table class="figures"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>{_differences(found)}</main>"
    )
    return whole_page("Models compared", body, style=STYLE)


def _differences(found: Comparison) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(one.second)} less {escape(one.first)}</th><td>{escape(one.dataset)}</td>'
        f"<td{' class=real' if one.real else ''}>{found.number(one.difference, True)}"
        f"<small>{escape(found.ends(one.interval, True))}</small></td><td>{escape(one.verdict())}</td></tr>"
        for one in found.differences
    )
    if not rows:
        return ""
    names = "".join(f'<th scope="col">{name}</th>' for name in ("on", "difference", "is it real?"))
    return (
        f'<section><h2>Differences</h2><div class="wide"><table class="figures"><thead><tr><td></td>{names}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><p class="soft">Paired bootstrap; p by Holm over '
        f"{len(found.differences)} comparisons. Intervals are of each comparison alone.</p></section>"
    )
