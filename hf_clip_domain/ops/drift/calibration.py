"""What the tests give when nothing has drifted, and p values that hold for all tests together.

The reference is split into two parts at random, many times, and every test is made of each split: that is the null
distribution. Whole clusters (a patient, a chapter: the `group` of a row) go to one part, because tomorrow's traffic comes
from new ones: rows dealt out singly would promise less difference than there is between two sets of chapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

RESAMPLES = 9999
_CHUNK = 512
_FEWEST_CLUSTERS = 20


def splits(clusters: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Random halves, whole clusters each: bool `(up to 512, n)` arrays of `resamples` rows in all.

    Args:
        clusters: `(n,)` of any integers; with fewer than 20 different ones every row stands alone.
    """
    place = np.unique(clusters, return_inverse=True)[1]
    if place.max(initial=0) + 1 < _FEWEST_CLUSTERS:
        place = np.arange(len(clusters))
    count = place.max() + 1
    draw = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        marks = draw.random((min(_CHUNK, resamples - start), count), dtype=np.float32)
        middle = np.partition(marks, count // 2, axis=1)[:, count // 2, None]
        yield (marks < middle)[:, place]


def null_distribution(
    tests: Mapping[str, Any], clusters: Mapping[str, np.ndarray], resamples: int = RESAMPLES
) -> np.ndarray:
    """Every test (anything with `of_splits`) of every split: `(resamples, tests)` float32, the columns in order.

    Tests of the same rows meet the same splits, so that their dependence is kept.
    """
    null = np.empty((resamples, len(tests)), dtype=np.float32)
    together: dict[bytes, list[int]] = {}
    for place, name in enumerate(tests):
        together.setdefault(np.asarray(clusters[name], dtype=np.int64).tobytes(), []).append(place)
    for places in together.values():
        names, start = [list(tests)[place] for place in places], 0
        for first in splits(clusters[names[0]], resamples):
            for place, name in zip(places, names, strict=True):
                null[start : start + len(first), place] = tests[name].of_splits(first)
            start += len(first)
    return null


def joint_p_values(null: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each test's own p value, and the one adjusted for all of them `(tests,)` each.

    If nothing has drifted, the smallest adjusted value is below a level with that probability, whatever the dependence
    between tests (Westfall and Young 1993, "Resampling-Based Multiple Testing", algorithm 2.5, single step).

    Args:
        null: `(resamples, tests)`.
        observed: `(tests,)`, large means drift.
    """
    count = len(null)
    ordered = np.sort(null, axis=0)
    columns = range(null.shape[1])
    observed = np.asarray(observed, dtype=null.dtype)
    # How many of the resamples and the observed one are at least as large, itself included: each is treated alike.
    own = np.stack([count - np.searchsorted(ordered[:, j], null[:, j]) for j in columns], axis=1)
    own = own + (observed >= null)
    plain = np.array([1 + count - np.searchsorted(ordered[:, j], observed[j]) for j in columns])
    smallest = np.sort(own.min(axis=1))
    adjusted = 1 + np.searchsorted(smallest, plain, side="right")
    return plain / (count + 1), adjusted / (count + 1)


def smallest_p_value(resamples: int, tests: int) -> float:
    """No adjusted p value of so many tests can be relied on to come below this, however large the drift."""
    return (1 + tests) / (resamples + 1)
