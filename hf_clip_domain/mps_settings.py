"""Environment variables of Apple's GPU (MPS) that torch reads only once, when it is imported: set before that.

What the user has set stays as it is. Why these values: docs/devices.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

HIGH_WATERMARK = "PYTORCH_MPS_HIGH_WATERMARK_RATIO"
LOW_WATERMARK = "PYTORCH_MPS_LOW_WATERMARK_RATIO"
FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"
# Shares of what Metal recommends as the largest working set. torch's own 1.7 lets a run outgrow a Mac's memory into
# swap, where it seems to hang; at 1.0 it ends with an out-of-memory error that says so.
_HIGH, _LOW = 1.0, 0.9


def prepare_mps(environment: MutableMapping[str, str] = os.environ, platform: str = sys.platform) -> dict[str, str]:
    """Set what the user has not; the variables that were set. On macOS only.

    Called by the entry points before they import torch. torch refuses a low watermark above the high one, so one that
    the user gives decides the other.
    """
    if platform != "darwin":
        return {}
    high, low = (_number(environment.get(name)) for name in (HIGH_WATERMARK, LOW_WATERMARK))
    chosen = {
        HIGH_WATERMARK: str(max(_HIGH, low or 0.0)),
        LOW_WATERMARK: str(min(_LOW, high or _LOW)),  # a high watermark of 0 means no limit
        FALLBACK: "1",
    }
    chosen = {name: value for name, value in chosen.items() if name not in environment}
    environment.update(chosen)
    return chosen


def _number(text: str | None) -> float | None:
    """`None` also for what is no number, which torch itself refuses."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
