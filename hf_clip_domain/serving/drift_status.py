"""What the last `hf-clip-domain monitor --output DIR` found, for people and for Prometheus.

The server does not judge its traffic: it reads the verdict, and says when there is none that holds for the model it
serves now.
"""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_clip_domain.serving.metrics import PREFIX

REPORT = "drift.json"
STALE_SECONDS = 86_400.0
STATUSES = OK, DRIFT, STALE, MISSING, UNREADABLE, OTHER_MODEL = (
    *("ok", "drift", "stale"),
    *("missing", "unreadable", "of another model"),
)
# A report of twenty windows has some 50 kB.
_LARGEST = 8 << 20
_PREFIX = f"{PREFIX}_drift"
_NAME = re.compile(r"[a-z_]+")


class DriftStatus:
    """The verdict in a folder, read anew when the file has changed.

    Args:
        folder: that `monitor --output` writes.
    """

    def __init__(self, folder: str | Path) -> None:
        self._file = Path(folder) / REPORT
        self._kept: tuple[Any, dict[str, Any] | None] = (None, None)  # which file, and what it says

    def read(self, revision: str) -> dict[str, Any]:
        """`status`, one of `STATUSES`, and why; or what `drifted`, when it was `checked`, and how many `windows` were
        judged. Touches the disk.

        Args:
            revision: the weights that serve now.
        """
        status, report = self._status(revision)
        if report is None:
            missing = f"there is no {REPORT} in the folder: run hf-clip-domain monitor with --output"
            return {"status": status, "reason": missing if status == MISSING else f"{REPORT} cannot be used"}
        drifted = {"drifted": ", ".join(report["drifted"])} if report["drifted"] else {}
        checked = datetime.fromtimestamp(report["made"], UTC).strftime("%Y-%m-%d %H:%M UTC")
        return {"status": status, **drifted, "checked": checked, "windows": report["windows"]}

    def prometheus(self, revision: str) -> bytes:
        """In Prometheus' format, named as in `drift.prom`, so that the monitor's alert rules fit."""
        status, report = self._status(revision)
        lines = [*_head("status", "1 at what holds now."), *(_sample("status", s, s == status) for s in STATUSES)]
        if report is not None:
            lines += _head("last_check_timestamp_seconds", "When monitor wrote its report.")
            lines += [f"{_PREFIX}_last_check_timestamp_seconds {report['made']}"]
        if report is not None and status != OTHER_MODEL:
            lines += _head("detected", "1 where a test raised an alarm.")
            lines += [_sample("test", name, name in report["drifted"], "detected") for name in report["tests"]]
        return ("\n".join(lines) + "\n").encode()

    def _status(self, revision: str) -> tuple[str, dict[str, Any] | None]:
        try:
            found = self._file.stat()
        except OSError:
            return MISSING, None
        kept, report = self._kept
        if (seen := (found.st_mtime_ns, found.st_size, found.st_ino)) != kept:
            report = _load(self._file, found.st_size)
            self._kept = seen, report
        if report is None:
            return UNREADABLE, None
        if report["revision"] != revision:
            return OTHER_MODEL, report
        if time.time() - report["made"] > STALE_SECONDS:
            return STALE, report
        return DRIFT if report["drifted"] else OK, report


def _head(name: str, words: str) -> list[str]:
    return [f"# HELP {_PREFIX}_{name} {words}", f"# TYPE {_PREFIX}_{name} gauge"]


def _sample(label: str, value: str, holds: bool, name: str = "status") -> str:
    return f'{_PREFIX}_{name}{{{label}="{value}"}} {float(holds)}'


def _load(file: Path, size: int) -> dict[str, Any] | None:
    """What is shown of a report; None where it cannot be used."""
    try:
        if size > _LARGEST:
            return None
        report = json.loads(file.read_text(encoding="utf-8"))
        drifted = [str(name) for name in report["drifted"]]
        tests = sorted({name for look in report["looks"] for name in look["tests"] if _NAME.fullmatch(name)})
        if report["feedback"] and report["feedback"]["degraded"]:
            drifted.append("feedback")
        return {
            "drifted": drifted,
            "tests": tests,
            "made": float(report["made"]),
            "windows": sum(len(look["windows"]) == 1 for look in report["looks"]),
            "revision": str(report["reference"]["revision"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
