"""The verdict on a folder of windows, and its forms for machines: JSON, Prometheus metrics, alert rules."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hf_clip_domain.ops.drift.detector import Look, Rule
from hf_clip_domain.ops.drift.feedback import Degradation
from hf_clip_domain.ops.drift.reference import Reference
from hf_clip_domain.ops.drift.suggestion import Suggestion
from hf_clip_domain.ops.drift.windows import Window
from hf_clip_domain.serving.quality import QUALITIES

NAMES = {
    "image": "image embeddings",
    "quality": "picture quality",
    "text": "text embeddings",
    "alignment": "image-text alignment",
    "pairing": "centred alignment",
    "terms": "unseen terms",
    "top_score": "top scores",
    "entropy": "entropy",
}
_PREFIX = "hf_clip_domain_drift"


@dataclass(frozen=True)
class DriftReport:
    """What was looked at and found.

    Attributes:
        looks: the oldest first.
        skipped: files that were left out, and why.
        figures: medians of the reference and of the newest window, by name; for reading, not tested.
    """

    reference: dict[str, Any]
    rule: Rule
    looks: Sequence[Look]
    skipped: dict[str, str]
    suggestion: Suggestion
    figures: dict[str, dict[str, float]]
    feedback: Degradation | None = None
    made: float = field(default_factory=lambda: datetime.now(UTC).timestamp())

    @property
    def alarms(self) -> list[Look]:
        return [look for look in self.looks if look.drifted]

    @property
    def drifted(self) -> set[str]:
        """Names of the tests that raised an alarm."""
        return {name for look in self.alarms for name in look.drifted}

    @property
    def found(self) -> bool:
        """Whether anything drifted, or measured degradation was shown."""
        return bool(self.alarms) or (self.feedback is not None and self.feedback.degraded)

    def summary(self) -> str:
        """For the console and the webhook."""
        judged = sum(len(look.windows) == 1 for look in self.looks)
        lines = [f"{judged} windows, {self.looks[-1].requests} requests in the newest look."]
        if self.alarms:
            named = ", ".join(NAMES[name] for name in NAMES if name in self.drifted)
            lines.append(
                f"DRIFT in {named}: {len(self.alarms)} of {len(self.looks)} looks, newest {when(self.alarms[-1])}."
            )
        else:
            lines.append(
                f"No drift (at most {self.rule.false_alarms:.0%} chance of a false alarm in {self.rule.horizon} windows)."
            )
        lines += [f"Left out {name}: {reason}" for name, reason in self.skipped.items()]
        if self.feedback is not None:
            lines.append(self.feedback.sentence())
        if self.alarms:
            lines.append(self.suggestion.text)
            lines.append(f"  {self.suggestion.command}")
        return "\n".join(lines)

    def table(self) -> str:
        """The newest look at each span."""
        newest = {len(look.windows): look for look in self.looks}
        lines = [f"{'':22}{'windows':>8}{'rows':>8}{'distance':>10}{'p':>9}{'adjusted':>10}"]
        for span, look in newest.items():
            for name, test in look.tests.items():
                mark = " *" if name in look.drifted else ""
                lines.append(
                    f"{NAMES[name]:22}{span:8}{test.rows:8}{test.statistic:10.2f}{test.p:9.4f}{test.adjusted:10.4f}{mark}"
                )
        return "\n".join([*lines, f"* adjusted p at most {self.rule.level:.2g}"])

    def to_json(self) -> dict[str, Any]:
        return {
            "drift": bool(self.alarms),
            "drifted": sorted(self.drifted),
            "reference": {name: value for name, value in self.reference.items() if name != "labels"},
            "rule": {**asdict(self.rule), "level": self.rule.level},
            "looks": [asdict(look) for look in self.looks],
            "figures": self.figures,
            "skipped": self.skipped,
            "feedback": self.feedback.to_json() if self.feedback is not None else None,
            "suggestion": self.suggestion.to_json(),
            "made": self.made,
        }

    def prometheus(self) -> str:
        """For node_exporter's textfile collector."""
        latest = self.looks[-1]
        alone = next(look for look in reversed(self.looks) if len(look.windows) == 1)
        lines: list[str] = []

        def add(name: str, text: str, samples: dict[str, float]) -> None:
            lines.extend([f"# HELP {_PREFIX}_{name} {text}", f"# TYPE {_PREFIX}_{name} gauge"])
            lines.extend(f"{_PREFIX}_{name}{label} {value:.9g}" for label, value in samples.items())

        tested = {name for look in self.looks for name in look.tests}
        add(
            "detected", "1 where a test raised an alarm.", {_label(n): float(n in self.drifted) for n in sorted(tested)}
        )
        add("p_value", "Of the newest window.", {_label(n): test.p for n, test in alone.tests.items()})
        add(
            "adjusted_p_value", "For all tests together.", {_label(n): test.adjusted for n, test in alone.tests.items()}
        )
        add(
            "statistic", "Scaled distance from the reference.", {_label(n): t.statistic for n, t in alone.tests.items()}
        )
        add("windows", "Windows judged.", {"": sum(len(look.windows) == 1 for look in self.looks)})
        add("windows_skipped", "Files that could not be used.", {"": len(self.skipped)})
        add("last_window_timestamp_seconds", "End of the newest window.", {"": latest.ended})
        add("last_check_timestamp_seconds", "When this was made.", {"": self.made})
        if self.feedback is not None:
            add("feedback_recall", "Right text first among 20, labelled pairs.", {"": self.feedback.recall})
            add("feedback_change", "Against the reference.", {"": self.feedback.change})
            add("feedback_degraded", "1 where the interval is below zero.", {"": float(self.feedback.degraded)})
        return "\n".join(lines) + "\n"


def alert_rules() -> str:
    """A rule file for Prometheus."""
    rules = [
        _rule(
            "ClipDrift",
            f"max by (instance, test) ({_PREFIX}_detected) == 1",
            "0m",
            "warning",
            "Traffic differs from the model's reference: {{ $labels.test }}",
        ),
        _rule(
            "ClipDegraded",
            f"{_PREFIX}_feedback_degraded == 1",
            "0m",
            "critical",
            "Labelled pairs show that the model has become worse",
        ),
        _rule(
            "ClipDriftNotChecked",
            f"time() - {_PREFIX}_last_check_timestamp_seconds > 86400",
            "10m",
            "warning",
            "hf-clip-domain monitor has not run for a day",
        ),
        _rule(
            "ClipDriftUnknown",
            f'max by (instance, status) ({_PREFIX}_status{{status=~"missing|unreadable|of another model"}}) == 1',
            "6h",
            "warning",
            "The server has no verdict on drift that holds: {{ $labels.status }}",
        ),
        _rule(
            "ClipStatisticsUnusable",
            f"{_PREFIX}_windows_skipped > 0",
            "1h",
            "warning",
            "Some statistics are damaged or of another model",
        ),
    ]
    text = yaml.safe_dump({"groups": [{"name": "hf-clip-domain-drift", "rules": rules}]}, sort_keys=False, width=120)
    return "# rule_files: [drift_rules.yaml] in prometheus.yml\n" + text


def figures_of(reference: Reference, window: Window) -> dict[str, dict[str, float]]:
    """Medians and shares, `{name: {"reference", "window"}}`; a side that has none is left out."""
    arrays, found = reference.arrays, {}
    for name, own in (("pair_scores", "pair score"), ("top_scores", "top score"), ("entropies", "entropy")):
        found[own] = {"reference": arrays.get(name), "window": window.series[name]}
    for place, name in enumerate(QUALITIES):
        own = arrays.get("image_qualities")
        found[name] = {"reference": own if own is None else own[:, place], "window": window.qualities[:, place]}
    found["picture height"] = {"window": window.series["image_sizes"][:, 0]}
    found["picture width"] = {"window": window.series["image_sizes"][:, 1]}
    found["tokens of a text"] = {"window": window.series["text_lengths"]}
    medians = {
        name: {side: float(np.median(rows)) for side, rows in sides.items() if rows is not None and len(rows)}
        for name, sides in found.items()
    }
    if "terms" in reference.tests and window.texts:
        share = reference.unseen_share(window.token_counts)
        medians["unseen terms"] = {"reference": reference.tests["terms"].rate, "window": share}
    return {name: sides for name, sides in medians.items() if sides}


def write_whole(file: Path, text: str) -> None:
    """At once, so that no reader meets half a file."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


def write_outputs(report: DriftReport, folder: Path, page: str) -> None:
    """`drift.json`, `drift.html`, `drift.prom` and `drift_rules.yaml`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "drift.json", json.dumps(report.to_json(), indent=2) + "\n")
    write_whole(folder / "drift.html", page)
    write_whole(folder / "drift.prom", report.prometheus())
    write_whole(folder / "drift_rules.yaml", alert_rules())


def when(look: Look) -> str:
    """The end of a look, in UTC."""
    return datetime.fromtimestamp(look.ended, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _label(test: str) -> str:
    return f'{{test="{test}"}}'


def _rule(alert: str, expr: str, wait: str, severity: str, summary: str) -> dict[str, Any]:
    return {
        "alert": alert,
        "expr": expr,
        "for": wait,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }
