"""The report as one HTML file without scripts or anything from elsewhere."""

from __future__ import annotations

import math
from html import escape

import numpy as np

from hf_clip_domain.ops.drift.reference import Reference
from hf_clip_domain.ops.drift.report import NAMES, DriftReport, when
from hf_clip_domain.ops.drift.windows import Window

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#1a1a1a;background:#fff}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}.bad{color:#b00020;font-weight:600}.good{color:#1b6e3c;font-weight:600}
pre{background:#f4f4f4;padding:.8em;overflow-x:auto}svg{max-width:100%;height:auto}
"""
_MOST_POINTS = 400


def render(report: DriftReport, reference: Reference, window: Window) -> str:
    """The page; `window` is what the plots show."""
    drift = "bad" if report.found else "good"
    newest = {len(look.windows): look for look in report.looks}
    tests = "".join(
        f"<tr><td>{NAMES[name]}</td><td>{span}</td><td>{test.rows}</td><td>{test.statistic:.2f}</td><td>{test.p:.4f}</td>"
        f'<td class="{"bad" if name in look.drifted else ""}">{test.adjusted:.4f}</td></tr>'
        for span, look in newest.items()
        for name, test in look.tests.items()
    )
    figures = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td>{sides[side]:.3g}</td>" if side in sides else "<td></td>" for side in ("reference", "window"))
        + "</tr>"
        for name, sides in report.figures.items()
    )
    clusters = "".join(
        f"<tr><td>{cluster.kind}s</td><td>{cluster.rows}</td><td>{cluster.similarity:.2f}</td>"
        f"<td>{escape('; '.join(cluster.nearest)) or '(the reference has no labels)'}</td></tr>"
        for cluster in report.suggestion.clusters
    )
    domains = ", ".join(f"{name} {share:.0%}" for name, share in report.suggestion.nearest_domains.items())
    command = f"<pre>{escape(report.suggestion.command)}</pre>" if report.suggestion.command and report.alarms else ""
    plots = "".join(
        f"<h3>{name}</h3>{_scatter(reference, window, kind)}"
        for kind, name in (("image", "Image embeddings"), ("text", "Text embeddings"))
        if kind in reference.tests
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Drift</title><style>{_STYLE}</style></head><body>
<h1>Traffic against the reference</h1>
<p class="{drift}">{escape(report.summary().splitlines()[1])}</p>
<pre>{escape(report.summary())}</pre>{command}
<h2>The newest looks</h2>
<table><tr><th>test</th><th>windows</th><th>rows</th><th>distance</th><th>p</th><th>adjusted</th></tr>{tests}</table>
<p>An adjusted p value of at most {report.rule.level:.2g} raises an alarm: at most {report.rule.false_alarms:.0%} chance of
any false one in {report.rule.horizon} windows.</p>
<h2>Window by window</h2>{_history(report)}
<h2>Figures</h2><table><tr><th>median</th><th>reference</th><th>newest window</th></tr>{figures}</table>
<h2>What is least like the reference</h2>
<p>Requests are not kept, so they cannot be shown: these are the {"most shifted" if clusters else "few"} sketches of the
newest look in clusters, and the labels of the held-out rows that come nearest.</p>
<table><tr><th></th><th>rows</th><th>cosine to the nearest</th><th>nearest labels</th></tr>{clusters}</table>
<p>{escape(f"Texts by their nearest neighbours: {domains}." if domains else "")}</p>
{plots}
<p>Reference: {escape(str(report.reference.get("model") or ""))}, weights {escape(report.reference["revision"][:12])},
{escape(report.reference["origin"])} of {escape(str(report.reference.get("dataset") or "unnamed data"))}.
Newest window {when(report.looks[-1])}.</p>
</body></html>
"""


def _history(report: DriftReport) -> str:
    """The smallest adjusted p value of every single window, on a logarithmic axis."""
    points = [
        (look, min((t.adjusted for t in look.tests.values()), default=1.0))
        for look in report.looks
        if len(look.windows) == 1
    ]
    low = math.log10(min([report.rule.level, *(p for _, p in points)])) - 0.3
    width, height = 900, 160

    def y(p: float) -> float:
        return 10 + (height - 20) * math.log10(p) / low

    step = width / (len(points) + 1)
    dots = "".join(
        f'<circle cx="{step * (i + 1):.1f}" cy="{y(p):.1f}" r="4" fill="{"#b00020" if look.drifted else "#1b6e3c"}">'
        f"<title>{when(look)}: {p:.4f}</title></circle>"
        for i, (look, p) in enumerate(points)
    )
    line = y(report.rule.level)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Smallest adjusted p value of each window">'
        f'<line x1="0" x2="{width}" y1="{line:.1f}" y2="{line:.1f}" stroke="#b00020" stroke-dasharray="4"/>'
        f'<text x="4" y="{line - 4:.1f}" font-size="12">level</text>{dots}</svg>'
    )


def _scatter(reference: Reference, window: Window, kind: str) -> str:
    """Reference (grey) and window (red) in the two directions in which they vary and differ most."""
    test = reference.tests[kind]
    rows = window.images if kind == "image" else window.text_vectors
    if len(rows) < 3:
        return "<p>The window has none.</p>"
    draw = np.random.default_rng(0)
    sides = [values[draw.permutation(len(values))[:_MOST_POINTS]] for values in (test.reference, test.whitened(rows))]
    joined = np.concatenate(sides)
    centred = joined - joined.mean(axis=0)
    flat = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    low, high = flat.min(axis=0), flat.max(axis=0)
    flat = 10 + (flat - low) / np.maximum(high - low, 1e-9) * [580, 280]
    colours = ["#888"] * len(sides[0]) + ["#b00020"] * len(sides[1])
    dots = "".join(
        f'<circle cx="{x:.0f}" cy="{y:.0f}" r="2.5" fill="{colour}" fill-opacity=".6"/>'
        for (x, y), colour in zip(flat, colours, strict=True)
    )
    return (
        f'<svg viewBox="0 0 600 300" role="img" aria-label="Reference grey, window red">{dots}</svg>'
        "<p>Grey: reference; red: newest look. Two principal directions of the whitened sketches.</p>"
    )
