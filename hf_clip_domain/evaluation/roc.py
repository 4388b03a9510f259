"""The ROC curve. Scikit-learn's takes most of its time to check its input, which is much for hundreds of resamples."""

from __future__ import annotations

import numpy as np


def roc_curve(right: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the wrong rows and of the right ones that score at least each threshold, `(t,)` each, from 0 to 1.

    Args:
        right `(n,)` bool, of which some are and some are not; scores `(n,)`: rows of equal score are one threshold.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # row of each threshold
    hits = np.cumsum(right[order])[last]
    alarms = last + 1 - hits
    return np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1])


def roc_area(right: np.ndarray, scores: np.ndarray) -> float:
    """The area under it: how often a right row scores above a wrong one, ties half; NaN where all rows are alike."""
    if not 0 < np.count_nonzero(right) < len(right):
        return float("nan")
    alarms, hits = roc_curve(right, scores)
    return float(np.diff(alarms) @ (hits[1:] + hits[:-1]) / 2)
