"""A report as tables: one of both directions for each group of retrieval metrics, one for each other group.

What is shown is decided once (`sections`); the console, the model card and the HTML page only lay it out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_clip_domain.evaluation.resolution_table import Resolutions

if TYPE_CHECKING:
    from hf_clip_domain.evaluation.report import EvaluationReport

DIRECTIONS = {"image_to_text": "image -> text", "text_to_image": "text -> image"}
# (metric, heading, shown as a percentage)
RETRIEVAL = (
    ("recall@1", "Recall@1", True),
    ("recall@5", "Recall@5", True),
    ("recall@10", "Recall@10", True),
    ("mean_rank", "Mean rank", False),
    ("median_rank", "Median rank", False),
    ("mrr", "MRR", False),
    ("map", "mAP", True),
    ("ndcg@10", "nDCG@10", True),
    ("map_by_label", "mAP by label", True),
)
# Of the other groups: how the last part of a key reads. What is not here is shown by its own name, in percent.
NAMES = {
    "auroc": "AUROC",
    "macro_f1": "macro-F1",
    "ece": "calibration error (ECE)",
    "balanced_accuracy": "balanced accuracy",
}
COUNTS = ("rows", "classes", "pairs", "candidates", "queries", "threshold")
REAL = "*"


@dataclass(frozen=True)
class Cell:
    """A figure as text, with its interval as text where there is one."""

    text: str
    low: str = ""
    high: str = ""

    def brief(self) -> str:
        return f"[{self.low},{self.high}]" if self.low else ""


@dataclass(frozen=True)
class Row:
    """One metric: for each column of the section's `columns` its before, after and change."""

    heading: str
    cells: list[tuple[Cell, Cell, Cell]]
    real: list[bool]


@dataclass(frozen=True)
class Section:
    """One table: a title, the columns (two directions, or one without a name), rows and notes."""

    title: str
    columns: list[str]
    rows: list[Row]
    notes: list[str]


def retrieval_groups(metrics: dict[str, float]) -> list[str]:
    """Prefixes of the groups of retrieval metrics, the unnamed main group `""` first."""
    found = {key[: -len("image_to_text/recall@1")] for key in metrics if key.endswith("image_to_text/recall@1")}
    return sorted(prefix.rstrip("/") for prefix in found)


def sections(report: EvaluationReport) -> list[Section]:
    """The tables of a report, retrieval first."""
    groups = retrieval_groups(report.after)
    found = [_retrieval(report, group) for group in groups]
    retrieval = [key for key in report.after if any(f"{way}/" in key for way in DIRECTIONS) or key == "candidates"]
    told = ("candidates", "mean_recall@10", "retained_recall@10", "lost_points")  # in a group's notes, or of its rows
    retrieval += [f"{group}/{name}" for group in groups if group for name in told]
    others: dict[str, list[str]] = {}
    for key in report.after:
        if key not in retrieval and "/" in key:
            others.setdefault(key.split("/")[0], []).append(key)
    return found + [_other(report, group, keys) for group, keys in others.items()]


def console(report: EvaluationReport) -> str:
    """At most 100 columns wide; the interval shown is that of the change, or of the score when there is but one."""
    tables = [_console(section, bool(report.before)) for section in sections(report)]
    sizes = picture_sizes(report)
    return "\n\n".join(tables + ([sizes.table()] if sizes is not None else []) + not_measured(report))


def not_measured(report: EvaluationReport) -> list[str]:
    """A line for what was skipped and why, if anything was."""
    skipped = report.extra.get("skipped", {})
    lines = [f"  {name.replace('_', ' ')}: {reason}" for name, reason in skipped.items()]
    return ["\n".join(["Not measured:", *lines])] if lines else []


def markdown(report: EvaluationReport) -> str:
    """GitHub tables with all intervals."""
    tables = [_markdown(section, bool(report.before)) for section in sections(report)]
    sizes = picture_sizes(report)
    return "\n\n".join(tables + ([sizes.markdown()] if sizes is not None else []))


def picture_sizes(report: EvaluationReport) -> Resolutions | None:
    """The fine-tuned model at several picture sizes, where that was measured."""
    stored = report.extra.get("resolutions")
    return None if stored is None else Resolutions.from_json(stored)


def _retrieval(report: EvaluationReport, group: str) -> Section:
    rows = []
    for metric, heading, percent in RETRIEVAL:
        keys = [_key(group, direction, metric) for direction in DIRECTIONS]
        if any(math.isfinite(_either(report, key)) for key in keys):
            digits = 3 if metric == "mrr" else 1
            rows.append(_row(report, heading + (" (%)" if percent else ""), keys, percent, digits))
    notes = []
    counts = [_either(report, _key(group, direction, "candidates")) for direction in DIRECTIONS]
    if all(map(math.isfinite, counts)):
        notes.append(f"Candidates: {counts[0]:,.0f} texts for an image, {counts[1]:,.0f} images for a text.")
    chances = []
    for direction, title in DIRECTIONS.items():
        values = [_either(report, _key(group, direction, f"chance_recall@{k}")) for k in (1, 5, 10)]
        if all(map(math.isfinite, values)):
            chances.append(f"{title} " + " / ".join(f"{100 * value:.1f}" for value in values))
    if chances:
        notes.append("Chance Recall@1 / 5 / 10 (%): " + ", ".join(chances) + ".")
    kept = report.after.get(f"{group}/retained_recall@10", math.nan)
    if math.isfinite(kept):
        lost = report.after[f"{group}/lost_points"]
        notes.append(f"Retained: {kept:.1%} of the mean Recall@10, {lost:.1f} points lost.")
    return Section(group, list(DIRECTIONS.values()), rows, notes + _interval_notes(report, group, rows))


def _other(report: EvaluationReport, group: str, keys: list[str]) -> Section:
    rows, counted, chances = [], [], []
    for key in keys:
        path = key.split("/")[1:]
        name = path[-1]
        value = report.after[key]
        if name == "chance":
            within = f" {_words(path[:-1])}" if path[:-1] else ""
            chances.append(f"{100 * value:.1f}%{within}")
        elif name in COUNTS:
            counted.append(f"{_words([*path[:-1], name])} {value:,.3f}".removesuffix(".000"))
        elif math.isfinite(value) or math.isfinite(report.before.get(key, math.nan)):
            rows.append(_row(report, f"{_words(path)} (%)", [key], percent=True, digits=1))
    notes = [f"Chance: {', '.join(chances)}."] if chances else []
    if counted:
        notes.append(f"Counted: {', '.join(counted)}.")
    return Section(group.replace("_", " "), [""], rows, notes + _interval_notes(report, group, rows))


def _row(report: EvaluationReport, heading: str, keys: list[str], percent: bool, digits: int) -> Row:
    def cell(value: float, side: str, key: str) -> Cell:
        ends = report.intervals.get(side, {}).get(key)
        text = _number(value, percent, digits, signed=side == "change")
        if ends is None or not math.isfinite(value):
            return Cell(text)
        return Cell(text, *(_number(end, percent, digits, signed=side == "change") for end in ends))

    cells = []
    for key in keys:
        before, after = (side.get(key, math.nan) for side in (report.before, report.after))
        cells.append((cell(before, "before", key), cell(after, "after", key), cell(after - before, "change", key)))
    return Row(heading, cells, [bool(report.is_real(key)) for key in keys])


def _interval_notes(report: EvaluationReport, group: str, rows: list[Row]) -> list[str]:
    if not any(cell.low for row in rows for trio in row.cells for cell in trio):
        return []
    count = report.extra.get("clusters", {}).get(group)
    of = f" of {count:,} independent clusters" if count else ""
    notes = [f"In brackets: 95% intervals, bootstrap{of}."]
    return notes + ([f"{REAL} The interval of the change excludes zero."] if report.before else [])


def _console(section: Section, compared: bool) -> str:
    with_intervals = any(cell.low for row in section.rows for trio in row.cells for cell in trio)
    first = 16 if len(section.columns) > 1 else max([36, *(len(row.heading) + 2 for row in section.rows)])
    if not compared:
        widths, names = ([10, 17], ["score", "interval"]) if with_intervals else ([10], ["score"])
    elif with_intervals:
        widths, names = [7, 8, 8, 17], ["before", "after", "change", "interval"]
    else:
        widths, names = [10, 10, 10], ["before", "after", "change"]

    def shown(trio: tuple[Cell, Cell, Cell], real: bool) -> list[str]:
        before, after, change = trio
        if not compared:
            return [after.text, after.brief()][: len(widths)]
        ends = f"{change.brief()}{REAL if real else ' '}" if change.low else " "
        return [before.text, after.text, change.text, ends][: len(widths)]

    def laid_out(texts: list[str]) -> str:
        return "".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))

    head = f"{'':{first}}" + " | ".join(f"{title:^{sum(widths)}}" for title in section.columns)
    columns = f"{'':{first}}" + " | ".join(laid_out(names) for _ in section.columns)
    lines = [f"{section.title}:"] if section.title else []
    lines += [head.rstrip()] if any(section.columns) else []
    lines += [columns, "-" * len(columns)] if section.rows else []
    for row in section.rows:
        cells = (laid_out(shown(trio, real)) for trio, real in zip(row.cells, row.real, strict=True))
        lines.append((f"{row.heading:{first}}" + " | ".join(cells)).rstrip())
    return "\n".join(lines + section.notes)


def _markdown(section: Section, compared: bool) -> str:
    names = ("before", "after", "change") if compared else ("score",)
    titles = [title.replace("->", "→") for title in section.columns]
    columns = [f"{title}, {name}" if title else name for title in titles for name in names]
    lines = [f"**{section.title}**", ""] if section.title else []
    if section.rows:
        lines += ["| | " + " | ".join(columns) + " |", "|:--|" + "--:|" * len(columns)]
    for row in section.rows:
        texts = []
        for trio, real in zip(row.cells, row.real, strict=True):
            found = [cell.text + (f" ({cell.low} to {cell.high})" if cell.low else "") for cell in trio]
            found[2] += REAL if real else ""
            texts += found if compared else found[1:2]
        lines.append("| " + " | ".join([row.heading, *texts]) + " |")
    notes = [note.replace("->", "→").replace(f"{REAL} ", f"\\{REAL} ") for note in section.notes]
    return "\n".join(lines + ([""] + notes if notes else [])).replace(f"){REAL}", f")\\{REAL}")


def _words(path: list[str]) -> str:
    return ", ".join(NAMES.get(part, part.replace("_", " ")) for part in path)


def _key(group: str, direction: str, metric: str) -> str:
    return "/".join(filter(None, (group, direction, metric)))


def _either(report: EvaluationReport, key: str) -> float:
    return report.after.get(key, report.before.get(key, math.nan))


def _number(value: float, percent: bool, digits: int, signed: bool = False) -> str:
    if not math.isfinite(value):
        return "n/a"
    return f"{100 * value if percent else value:{'+' if signed else ''}.{digits}f}"
