"""The page of a run: one HTML file without a script, a server or anything from elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from html import escape

from hf_clip_domain.charts import Curve, line_chart
from hf_clip_domain.page import whole_page

REFRESH = 10  # seconds after which a browser reads the page of a running run again
EVENTS = 100  # shown; the latest ones

_STYLE = """
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:.8rem}
.state{display:inline-block;padding:.1rem .6rem;border-radius:1rem;border:2px solid var(--c0);font-weight:600}
.finished{border-color:var(--c2)}.failed{border-color:var(--c1)}progress{width:100%;height:.8rem}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem}
dl div{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}
dt{font-size:.85rem}dd{margin:0;font-size:1.2rem}
section{margin-top:.8rem}table{border-collapse:collapse}td,th{text-align:left;vertical-align:top}
tr>:first-child{white-space:nowrap;padding-right:.8rem}
""".strip()


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%" if math.isfinite(value) else str(value)


def _gib(mib: float) -> str:
    return f"{mib / 1024:.3g} GiB"


# Title, the curves by label and the name they are logged by, and how the axis and the values are written.
CHARTS = [
    ("Loss", {"training": "loss", "held out": "eval_loss"}, {}),
    (
        "Held-out recall",
        {
            "text → image @1": "eval_text_to_image/recall@1",
            "text → image @10": "eval_text_to_image/recall@10",
            "image → text @1": "eval_image_to_text/recall@1",
            "image → text @10": "eval_image_to_text/recall@10",
        },
        {"low": 0.0, "show": _percent},
    ),
    ("Pairs a second", {"pairs": "pairs_per_second"}, {"low": 0.0}),
    (
        "Where the time goes",
        {phase: f"time_share/{phase}" for phase in ("data", "forward", "backward", "optimizer")},
        {"low": 0.0, "high": 1.0, "show": _percent},
    ),
    (
        "Memory",
        {"peak": "memory/peak_mib", "process": "memory/process_mib", "room left": "memory/room_mib"},
        {"low": 0.0, "unit": 1024, "show": _gib},
    ),
    ("Picture size", {"pixels": "resolution"}, {"low": 0.0}),
    ("Rows embedded at once", {"micro-batch": "micro_batch_size"}, {"low": 0.0}),
    ("Share of the device's peak FLOP/s", {"share": "flops/share_of_peak"}, {"low": 0.0, "show": _percent}),
    ("Learning rate", {"rate": "learning_rate"}, {"low": 0.0, "show": "{:.2g}".format}),
]
_CHARTED = {name for _, names, _ in CHARTS for name in names.values()}
_HIGHEST = {"memory/peak_mib"}


@dataclass
class RunPage:
    """What the page shows.

    Args:
        name: of the run.
        metric: by which the best checkpoint is chosen, as it is logged; charted if nothing else shows it.
        state: running, finished or failed.
        reason: of the failure.
    """

    name: str
    metric: str | None = None
    state: str = "running"
    reason: str | None = None
    step: int = 0
    max_steps: int = 0
    seconds_left: float | None = None
    updated: datetime = field(default_factory=lambda: datetime.now().astimezone())
    curves: dict[str, Curve] = field(default_factory=dict)
    events: list[tuple[int, str]] = field(default_factory=list)

    def add(self, entry: dict) -> None:
        """One entry of `TrainerState.log_history`."""
        step = entry.get("step", 0)
        if "event" in entry:
            self.events.append((step, str(entry["event"])))
        for name in (_CHARTED | {self.metric}) & entry.keys():
            if isinstance(entry[name], int | float):
                self.curves.setdefault(name, Curve(highest=name in _HIGHEST)).add(step, entry[name])

    def to_html(self) -> str:
        refresh = f'<meta http-equiv="refresh" content="{REFRESH}">' if self.state == "running" else ""
        reason = f"<p>{escape(self.reason)}</p>" if self.reason else ""
        body = (
            f"<header><h1>{escape(self.name)}</h1>"
            f'<p><span class="state {self.state}">{self.state}</span></p>{reason}'
            f'<p class="soft">{self._progress()} Last update <time datetime="{self.updated.isoformat()}">'
            f"{self.updated:%Y-%m-%d %H:%M:%S %Z}</time>.</p>"
            f'<progress aria-label="steps done" max="{max(1, self.max_steps)}" value="{self.step}"></progress></header>\n'
            f"<dl>{''.join(self._figures())}</dl>\n<main>{''.join(self._charts())}</main>\n{self._events()}"
        )
        return whole_page(f"{self.name}: {self.state}, step {self.step:,}", body, style=_STYLE, head=refresh)

    def _progress(self) -> str:
        left = ""
        if self.seconds_left is not None and self.state == "running":
            minutes = round(self.seconds_left / 60)
            left = f", about {minutes // 60} h {minutes % 60} min left" if minutes else ", less than a minute left"
        return f"Step {self.step:,} of {self.max_steps:,}{left}."

    def _figures(self):
        shown = [
            ("loss", "Loss", "{:.4g}".format),
            (self.metric, (self.metric or "").removeprefix("eval_"), "{:.4g}".format),
            ("pairs_per_second", "Pairs a second", "{:.4g}".format),
            ("memory/peak_mib", "Peak memory", _gib),
            ("micro_batch_size", "Micro-batch", "{:.0f}".format),
            ("flops/share_of_peak", "Of peak FLOP/s", _percent),
        ]
        for name, title, show in shown:
            if name in self.curves:
                yield f"<div><dt>{escape(title)}</dt><dd>{escape(show(self.curves[name].latest))}</dd></div>"

    def _charts(self):
        charts = list(CHARTS)
        if self.metric not in _CHARTED:
            title = (self.metric or "").removeprefix("eval_")
            charts.insert(1, (title, {"held out": self.metric}, {}))
        for title, names, options in charts:
            curves = {label: self.curves[name] for label, name in names.items() if name in self.curves}
            if any(curve.points() for curve in curves.values()):
                yield line_chart(title, curves, **options)

    def _events(self) -> str:
        rows = "".join(
            f"<tr><td>{step:,}</td><td>{escape(text)}</td></tr>" for step, text in self.events[: -EVENTS - 1 : -1]
        )
        more = len(self.events) - EVENTS
        more = f'<p class="soft">And {more:,} earlier ones.</p>' if more > 0 else ""
        head = '<tr><th scope="col">Step</th><th scope="col">Event</th></tr>'
        return f"<section><h2>Events</h2><table>{head}{rows}</table>{more}</section>\n"
