"""Tables of a report as HTML: figures with their intervals, confusions as shaded squares, lists of rows and texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hf_clip_domain.evaluation.gallery import shortened
from hf_clip_domain.evaluation.resolution_table import HEADINGS, Resolutions
from hf_clip_domain.evaluation.tables import REAL, Section

CLASSES = 20  # of a confusion matrix, the most frequent
LISTED = 50  # texts of a list
PICTURED = 12  # rows of a list

Picture = Callable[[int], "str | None"]


def figures_table(section: Section, compared: bool) -> str:
    """The figures of a section as one table, and its notes."""
    names = ("before", "after", "change") if compared else ("score",)
    titles = [title.replace("->", "→") for title in section.columns]
    head = ""
    if any(titles):
        head = (
            "<tr><td></td>" + "".join(f'<th colspan="{len(names)}">{escape(title)}</th>' for title in titles) + "</tr>"
        )
    head += "<tr><td></td>" + "".join(f'<th scope="col">{name}</th>' for _ in titles for name in names) + "</tr>"
    rows = []
    for row in section.rows:
        cells = []
        for trio, real in zip(row.cells, row.real, strict=True):
            for name, cell in zip(("before", "after", "change"), trio, strict=True):
                if not compared and name != "after":
                    continue
                ends = f"<small>{escape(cell.low)} to {escape(cell.high)}</small>" if cell.low else ""
                marked = ' class="real"' if real and name == "change" else ""
                cells.append(f"<td{marked}>{escape(cell.text)}{ends}</td>")
        rows.append(f'<tr><th scope="row">{escape(row.heading)}</th>{"".join(cells)}</tr>')
    notes = [note.replace("->", "→").replace("In brackets:", "Small figures:") for note in section.notes]
    notes = [note for note in notes if not note.startswith(REAL)]
    if any(real for row in section.rows for real in row.real):
        notes.append("Changes in bold have an interval that excludes zero.")
    table = (
        f'<div class="wide"><table class="figures"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    )
    return (table if rows else "") + f'<p class="soft">{escape(" ".join(notes))}</p>'


def resolutions_table(found: Resolutions) -> str:
    """A line a picture size, the recommended one marked, and what follows."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in HEADINGS[2:] if name != "interval")
    rows = []
    for one in found.sizes:
        recall, ends, drop, drops, *others = (escape(text) for text in one.texts())
        cells = [f"{recall}<small>{ends}</small>", f"{drop}<small>{drops}</small>", *others]
        chosen = ' class="chosen"' if one.size == found.recommended else ""
        rows.append(
            f'<tr{chosen}><th scope="row">{one.size} px</th><td>{one.tokens}</td>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    *notes, verdict = found.notes()
    return (
        f'<p class="verdict">{escape(verdict)}</p><div class="wide"><table class="figures"><thead><tr><td></td>'
        f'<th scope="col">tokens</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'<p class="soft">{escape(" ".join(notes))}</p>'
    )


def detail(name: str, value: Any, picture: Picture) -> str:
    """One entry of `extra["details"]` as HTML; nothing for a form that is not known here (the JSON has it all)."""
    title = name.split("/", 1)[-1].replace("_", " ").replace("/", ", ").capitalize()
    if isinstance(value, dict) and {"classes", "rows_are_true"} <= set(value):
        return f"<h3>{escape(title)}</h3>" + confusion_matrix(value["classes"], value["rows_are_true"])
    if not isinstance(value, list) or not value:
        return ""
    if all(isinstance(item, dict) and "row" in item for item in value):
        return f"<h3>{escape(title)}</h3>" + _row_list(value, picture)
    if all(isinstance(item, list | tuple) and len(item) == 3 for item in value):
        return _triples(title, value)
    return ""


def confusion_matrix(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Rows are the truth, columns what the model said, shaded by the share of the row; at most `CLASSES` of them."""
    total = {place: sum(row) for place, row in enumerate(counts)}
    kept = sorted(sorted(total, key=lambda place: -total[place])[:CLASSES])
    head = "".join(f'<th scope="col"><span>{escape(shortened(classes[place], 40))}</span></th>' for place in kept)
    rows = []
    for place in kept:
        cells = []
        for other in kept:
            share = counts[place][other] / max(1, total[place])
            shade = f' style="--share:{100 * share:.0f}%"' if share else ""
            kind = "right" if place == other else "wrong"
            cells.append(f'<td class="{kind}"{shade}>{counts[place][other] or ""}</td>')
        heading = escape(shortened(classes[place], 40))
        rows.append(f'<tr><th scope="row">{heading}</th>{"".join(cells)}</tr>')
    left = f" The {len(kept)} most frequent of {len(classes)} labels." if len(kept) < len(classes) else ""
    return (
        f'<div class="wide"><table class="matrix"><tr><td></td>{head}</tr>{"".join(rows)}</table></div>'
        f'<p class="soft">Rows: the true label. Columns: what it was taken for.{left}</p>'
    )


def picture_tag(source: str | None, alt: str) -> str:
    """An `img`, or a box that says so where the picture cannot be read."""
    if source is None:
        return '<span class="none">no picture</span>'
    return f'<img src="{escape(source)}" alt="{escape(shortened(alt, 120))}">'


def _row_list(rows: Sequence[dict[str, Any]], picture: Picture) -> str:
    shown = []
    for item in rows[:PICTURED]:
        label, taken = str(item.get("label", "")), str(item.get("taken_for", ""))
        file = Path(str(item["file"])).name if item.get("file") else f"row {item['row']}"
        shown.append(
            f"<figure>{picture_tag(picture(item['row']), label)}<figcaption>"
            f'<b dir="auto">{escape(shortened(label, 60))}</b>'
            f'<span>taken for <i dir="auto">{escape(shortened(taken, 60))}</i></span>'
            f'<span class="soft">{escape(shortened(file, 60))}</span></figcaption></figure>'
        )
    more = len(rows) - len(shown)
    left = f'<p class="soft">And {more} more, in evaluation.json.</p>' if more > 0 else ""
    return f'<div class="strip">{"".join(shown)}</div>{left}'


def _triples(title: str, triples: Sequence[Sequence[str]]) -> str:
    rows = "".join(
        "<tr>" + "".join(f'<td dir="auto">{escape(shortened(str(text)))}</td>' for text in triple) + "</tr>"
        for triple in triples[:LISTED]
    )
    count = f"{len(triples)}" + (f", the first {LISTED} shown" if len(triples) > LISTED else "")
    head = '<tr><th scope="col">text</th><th scope="col">means the same</th><th scope="col">was taken to be nearer</th></tr>'
    return (
        f"<details><summary>{escape(title)} ({count})</summary>"
        f'<div class="wide"><table class="texts">{head}{rows}</table></div></details>'
    )
