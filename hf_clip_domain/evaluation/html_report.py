"""A report as one HTML page that opens anywhere, offline: figures, charts, and the gallery with its pictures.

What is shown comes from the `EvaluationReport` (`tables.sections` and `extra`), so the page says what the console, the
JSON and the model card say.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hf_clip_domain.charts import Curve, line_chart
from hf_clip_domain.evaluation.html_charts import merging_chart, recall_chart
from hf_clip_domain.evaluation.html_gallery import gallery
from hf_clip_domain.evaluation.html_style import STYLE
from hf_clip_domain.evaluation.html_tables import Picture, detail, figures_table, resolutions_table
from hf_clip_domain.evaluation.report import EvaluationReport
from hf_clip_domain.evaluation.resolution_table import Resolutions
from hf_clip_domain.evaluation.tables import DIRECTIONS, Section, picture_sizes, sections
from hf_clip_domain.page import save_page, whole_page

HEADLINES = {
    "image_to_text/recall@10": "Image → text Recall@10",
    "text_to_image/recall@10": "Text → image Recall@10",
    "zero_shot/accuracy": "Zero-shot accuracy",
    "general/mean_recall@10": "General mean Recall@10",
}
_CURVES = (
    ("Loss", {"training": "loss", "held out": "eval_loss"}, None),
    (
        "Held-out Recall@10",
        {"text → image": "eval_text_to_image/recall@10", "image → text": "eval_image_to_text/recall@10"},
        "share",
    ),
    ("General mean Recall@10", {"held out": "eval_general/mean_recall@10"}, "share"),
)


def write_html(
    report: EvaluationReport,
    path: str | Path,
    *,
    picture: Picture = lambda row: None,
    log_history: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write the page, whole or not at all; returns the file.

    Args:
        picture: from a row of the scored data to its picture as a `data:` address, see `gallery.Thumbnails`.
        log_history: `TrainerState.log_history`, for the training's curves.
    """
    return save_page(to_html(report, picture=picture, log_history=log_history), path)


def to_html(
    report: EvaluationReport,
    *,
    picture: Picture = lambda row: None,
    log_history: Sequence[dict[str, Any]] = (),
) -> str:
    """The page; arguments as for `write_html`."""
    parts = dict(_parts(report, picture, log_history))
    links = "".join(f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title in parts)
    body = "".join(
        f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2>{content}</section>\n'
        for title, content in parts.items()
    )
    title = f"Evaluation: {report.domain or report.model or 'CLIP'}"
    head = f"<header><h1>{escape(_title(report))}</h1><p>{escape(_about(report))}</p>{_headline(report)}</header>"
    return whole_page(title, f"{head}<nav>{links}</nav>\n<main>{body}</main>", style=STYLE)


def _parts(report: EvaluationReport, picture: Picture, log: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The sections of the page: title and content."""
    extra, compared = report.extra, bool(report.before)
    details = dict(extra.get("details", {}))
    for section in sections(report):
        title = _section_title(section)
        content = _recall(report) if not section.title else ""
        content += figures_table(section, compared)
        if section.title == "general":
            content += _merging(report)
        own = [name for name in details if name.split("/")[0].replace("_", " ") == section.title]
        content += "".join(detail(name, details.pop(name), picture) for name in own)
        yield title, content
    if left := "".join(detail(name, value, picture) for name, value in details.items()):
        yield "Further details", left
    if (sizes := picture_sizes(report)) is not None:
        yield "Picture sizes", resolutions_table(sizes) + f'<div class="charts">{"".join(_size_charts(sizes))}</div>'
    if found := gallery(extra.get("gallery", ()), picture):
        yield "Gallery", found
    if curves := "".join(_curves(log)):
        yield "Training", f'<div class="charts">{curves}</div>'
    if skipped := extra.get("skipped", {}):
        rows = "".join(
            f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(str(reason))}</dd>"
            for name, reason in skipped.items()
        )
        yield "Not measured", f"<dl>{rows}</dl>"


def _section_title(section: Section) -> str:
    return {"": "Retrieval", "general": "What was kept"}.get(section.title, section.title.capitalize())


def _title(report: EvaluationReport) -> str:
    subject = f"the {report.domain} domain" if report.domain else _name(report.model or "a model")
    return f"What adapting to {subject} changed" if report.before else f"How good {_name(report.model)} is at {subject}"


def _about(report: EvaluationReport) -> str:
    models = _name(report.model) if report.model else "the adapted model"
    against = f", before: {_name(report.base_model)}" if report.base_model and report.before else ""
    data = f" Scored on {_name(report.dataset)}." if report.dataset else ""
    return f"Model: {models}{against}.{data}"


def _name(text: str) -> str:
    """Without the folders of this machine."""
    return Path(text).name if os.path.isabs(text) else text


def _headline(report: EvaluationReport) -> str:
    tiles = []
    for key, name in HEADLINES.items():
        after, before = report.after.get(key, math.nan), report.before.get(key, math.nan)
        if not math.isfinite(after):
            continue
        ends = report.intervals.get("after", {}).get(key)
        lines = [f"<dt>{escape(name)}</dt><dd>{100 * after:.1f}<small>%</small></dd>"]
        if math.isfinite(before):
            ends, change = report.intervals.get("change", {}).get(key), 100 * (after - before)
            kind = {True: "up" if change > 0 else "down", False: "same", None: "same"}[report.is_real(key)]
            text = f"from {100 * before:.1f}: {change:+.1f}"
            lines.append(f'<dd class="{kind}">{text}<br>{_ends(ends, signed=True)}</dd>')
        elif ends:
            lines.append(f'<dd class="same">{_ends(ends, signed=False)}</dd>')
        tiles.append(f"<div>{''.join(lines)}</div>")
    verdict = f'<p class="verdict">{escape(_verdict(report))}</p>' if report.before else ""
    return f'{verdict}<dl class="tiles">{"".join(tiles)}</dl>' if tiles else ""


def _ends(ends: Sequence[float] | None, *, signed: bool) -> str:
    sign = "+" if signed else ""
    return f"{100 * ends[0]:{sign}.1f} to {100 * ends[1]:{sign}.1f}" if ends else ""


def _verdict(report: EvaluationReport) -> str:
    """What the intervals of Recall@10 allow to say, in a sentence."""
    keys = [f"{direction}/recall@10" for direction in DIRECTIONS]
    real = [report.is_real(key) for key in keys]
    if None in real:
        return "Too few independent queries for intervals: read the changes with care."
    ups = [bool(told) and report.after[key] > report.before[key] for key, told in zip(keys, real, strict=True)]
    downs = [bool(told) and not up for told, up in zip(real, ups, strict=True)]
    if all(ups):
        return "Retrieval got better in both directions, beyond what chance in the choice of test pairs explains."
    if all(downs):
        return "Retrieval got worse in both directions, beyond what chance in the choice of test pairs explains."
    if not any(ups) and not any(downs):
        return "No change of Recall@10 can be told from chance in the choice of test pairs."
    said = [
        f"{title.replace('->', '→')} {'better' if up else 'worse' if down else 'not told from chance'}"
        for title, up, down in zip(DIRECTIONS.values(), ups, downs, strict=True)
    ]
    return f"Recall@10: {', '.join(said)}."


def _recall(report: EvaluationReport) -> str:
    legend = '<li class="cb">before</li><li class="c0">after</li>' if report.before else '<li class="c0">score</li>'
    charts = "".join(recall_chart(report, direction) for direction in DIRECTIONS)
    return f'<ul class="legend">{legend}<li class="c3">chance</li></ul><div class="charts">{charts}</div>'


def _merging(report: EvaluationReport) -> str:
    merged = report.extra.get("wise_ft")
    if not merged:
        return ""
    return (
        '<div class="charts">'
        + merging_chart(merged["points"], merged["alpha"], merged["forgetting_budget"])
        + "</div>"
    )


def _curves(log: Sequence[dict[str, Any]]) -> Iterator[str]:
    for title, names, kind in _CURVES:
        curves: dict[str, Curve] = {}
        for label, name in names.items():
            for entry in log:
                if isinstance(entry.get(name), int | float) and math.isfinite(entry[name]):
                    curves.setdefault(label, Curve()).add(entry.get("step", 0), entry[name])
        if curves:
            options = {"low": 0.0, "show": lambda value: f"{100 * value:.3g}%"} if kind else {}
            yield line_chart(title, curves, **options)


def _size_charts(found: Resolutions) -> Iterator[str]:
    for title, values, show in (
        ("Mean Recall@10", [one.mean_recall for one in found.sizes], lambda value: f"{100 * value:.3g}%"),
        ("Pictures a second", [one.pictures_per_second for one in found.sizes], "{:.4g}".format),
        ("Peak MiB of a batch", [one.peak_mib for one in found.sizes], "{:.4g}".format),
    ):
        curve = Curve()
        for one, value in zip(found.sizes, values, strict=True):
            curve.add(one.size, value)
        label = f"at {found.sizes[-1].size} pixels"
        yield line_chart(title, {label: curve}, low=0.0, show=show, x_last="{:,.0f} pixels")


def _anchor(title: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in title.lower())
