"""Confidence intervals by resampling what is independent: clusters of equal pictures and captions, not rows.

Two captions of one picture, or ten pictures of one caption, stand or fall together; counted as independent they would
make every interval too narrow (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 8.6). A resample
depends on the seed and the clusters alone, so two models scored on the same pairs meet the same resamples: the
difference of their replicates is a paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

REPLICATES = 1000
LEVEL = 0.95
# Below this many clusters the percentiles of resamples say little, and none are given.
FEWEST_CLUSTERS = 10
_SEED = 0


def clusters(links: Iterable[tuple[Sequence[int], Sequence[int]]], sizes: Sequence[int]) -> list[np.ndarray]:
    """Number the connected parts of several kinds of items.

    Args:
        links: for each further kind its links with the first: indices of the first kind, and of that kind.
        sizes: how many items each kind has.

    Returns:
        For each kind the part (from 0) of every item `(size,)`.

    >>> clusters([([0, 1, 2], [0, 0, 1])], [3, 2])  # pictures 0 and 1 share caption 0
    [array([0, 0, 1], dtype=int32), array([0, 1], dtype=int32)]
    """
    offsets = np.cumsum([0, *sizes])
    first, second = [], []
    for kind, (left, right) in enumerate(links, start=1):
        first.append(np.asarray(left, dtype=np.int64))
        second.append(np.asarray(right, dtype=np.int64) + offsets[kind])
    first, second = np.concatenate(first), np.concatenate(second)
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(offsets[-1], offsets[-1]))
    part = connected_components(graph, directed=False)[1]
    return [part[start:stop] for start, stop in zip(offsets, offsets[1:], strict=False)]


def resamples(count: int, replicates: int = REPLICATES, seed: int = _SEED) -> Iterator[np.ndarray]:
    """How often each of `count` clusters is drawn, `(count,)` integers of sum `count`, one a replicate."""
    random = np.random.default_rng(seed)
    for _ in range(replicates):
        yield np.bincount(random.integers(0, count, count), minlength=count)


def mean_replicates(
    values: dict[str, np.ndarray], cluster: np.ndarray, replicates: int = REPLICATES, seed: int = _SEED
) -> dict[str, np.ndarray]:
    """Means of each column over resampled clusters: `{name: (n,)} -> {name: (replicates,)}`.

    Args:
        cluster `(n,)`: the cluster of every value, any integers.

    Returns:
        Nothing for fewer than `FEWEST_CLUSTERS` clusters.
    """
    kinds, place = np.unique(cluster, return_inverse=True)
    if len(kinds) < FEWEST_CLUSTERS:
        return {}
    columns = [np.ones(len(cluster)), *(np.asarray(column, dtype=float) for column in values.values())]
    sums = np.stack([np.bincount(place, column, len(kinds)) for column in columns], axis=1)  # (clusters, 1 + names)
    drawn = np.stack([weights @ sums for weights in resamples(len(kinds), replicates, seed)])
    means = drawn[:, 1:] / drawn[:, :1]
    return dict(zip(values, means.T, strict=True))


def median_replicates(
    values: np.ndarray, cluster: np.ndarray, replicates: int = REPLICATES, seed: int = _SEED
) -> np.ndarray | None:
    """The same for the median: `(n,) -> (replicates,)`."""
    kinds, place = np.unique(cluster, return_inverse=True)
    if len(kinds) < FEWEST_CLUSTERS:
        return None
    order = np.argsort(values, kind="stable")
    ordered, place = np.asarray(values, dtype=float)[order], place[order]
    found = np.empty(replicates)
    for index, weights in enumerate(resamples(len(kinds), replicates, seed)):
        passed = weights[place].cumsum()
        middle = ((passed[-1] - 1) // 2, passed[-1] // 2)
        found[index] = ordered[np.searchsorted(passed, middle, side="right")].mean()
    return found


def statistic_replicates(
    statistic: Callable[[np.ndarray], dict[str, float]],
    cluster: np.ndarray,
    replicates: int = REPLICATES,
    seed: int = _SEED,
) -> dict[str, np.ndarray]:
    """The same for anything that is no mean: `statistic(rows)` is computed anew for the rows of every resample.

    A figure that is NaN on a resample (a class not drawn) is left out of its percentiles.
    """
    kinds, place = np.unique(cluster, return_inverse=True)
    if len(kinds) < FEWEST_CLUSTERS:
        return {}
    found: list[dict[str, float]] = []
    for weights in resamples(len(kinds), replicates, seed):
        found.append(statistic(np.repeat(np.arange(len(place)), weights[place])))
    return {name: np.array([one.get(name, np.nan) for one in found]) for name in found[0]}


def interval(replicates: np.ndarray, level: float = LEVEL) -> list[float] | None:
    """`[low, high]`: the percentiles that hold the middle `level` of the replicates."""
    finite = replicates[np.isfinite(replicates)]
    if len(finite) < len(replicates) / 2:
        return None
    return [float(end) for end in np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])]


def p_value(differences: np.ndarray) -> float:
    """Two-sided: how often a resample's difference lies on the other side of zero, twice, zero on both sides.

    One is added to count and replicates, so that it is never 0 (Davison and Hinkley 1997, "Bootstrap Methods and
    their Application", section 4.2).
    """
    finite = differences[np.isfinite(differences)]
    fewer = min(np.count_nonzero(finite <= 0), np.count_nonzero(finite >= 0))
    return float(min(1.0, 2 * (fewer + 1) / (len(finite) + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for several comparisons, in the order given: any below 0.05 is real with all of them in mind.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted
