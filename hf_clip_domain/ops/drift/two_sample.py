"""Distances between two samples, scaled so that their null distribution does not depend on the samples' sizes.

Each has two forms that agree: reference against window, and the same for many splits of the reference into two parts at
once, from which the null distribution comes. With sizes n and m, `nm / (n + m)` times a squared distance (its root times
a distance) has the same limit for all sizes when both samples are of one population.
"""

from __future__ import annotations

import numpy as np
from sklearn.covariance import ledoit_wolf

# Directions of less than this share of the mean variance are not enlarged further.
_FLOOR = 0.1
_LEAST_MORE = 0.01


def scale(n: int, m: int) -> float:
    """`nm / (n + m)`."""
    return n * m / (n + m)


class KernelDistance:
    """Maximum mean discrepancy with a Gaussian kernel, its width the median distance within the reference.

    Unbiased estimate of the squared MMD (Gretton et al. 2012, "A Kernel Two-Sample Test", JMLR 13, equation 3), scaled.
    Both samples are whitened before: noise and blur move embeddings in directions in which they hardly vary, and a kernel
    on the plain embeddings does not see it. The covariance for that comes from rows of their own: fitted to the reference's,
    it would fit these better than any others, and every window would stand out. It is shrunk towards a sphere by a tenth at
    least, or by what Ledoit and Wolf 2004 find.

    Args:
        reference: `(n, d)`.
        others: `(k, d)` rows of about the same kind that are neither the reference's nor a window's.
    """

    def __init__(self, reference: np.ndarray, others: np.ndarray) -> None:
        self._mean = others.mean(axis=0)
        shrunk, share = ledoit_wolf(others)
        size = max(float(np.trace(shrunk)) / len(shrunk), 1e-12)
        values, directions = np.linalg.eigh(shrunk)
        self._whiten = directions / np.sqrt(values + max(0.0, _FLOOR - share) * size + 1e-12)
        self.reference = self.whitened(reference)
        squares = _squared_distances(self.reference, self.reference)
        apart = squares[np.triu_indices(len(reference), 1)]
        self.width = max(float(np.median(apart)), 1e-12)
        self.kernel = np.exp(-squares / self.width)
        self.within = (self.kernel.sum(dtype=np.float64) - len(reference)) / (len(reference) * (len(reference) - 1))

    def whitened(self, rows: np.ndarray) -> np.ndarray:
        """`(m, d)` float32."""
        return ((rows - self._mean) @ self._whiten).astype(np.float32)

    def against(self, window: np.ndarray) -> float:
        """For a window `(m, d)`."""
        window = self.whitened(window)
        n, m = len(self.reference), len(window)
        cross, own = self._to(window).mean(dtype=np.float64), self._own(window)
        return float(scale(n, m) * (self.within + own - 2 * cross))

    def of_splits(self, first: np.ndarray) -> np.ndarray:
        """For the splits of the reference into the rows that `first` `(k, n)` bool marks, and the others: `(k,)`."""
        side = first.astype(np.float32)
        n = side.sum(axis=1, dtype=np.float64)
        m = side.shape[1] - n
        met = side @ self.kernel  # (k, n)
        aa = (met * side).sum(axis=1, dtype=np.float64)
        ab = met.sum(axis=1, dtype=np.float64) - aa
        bb = self.kernel.sum(dtype=np.float64) - aa - 2 * ab
        squared = (aa - n) / (n * (n - 1)) + (bb - m) / (m * (m - 1)) - 2 * ab / (n * m)
        return n * m / (n + m) * squared

    def witness(self, window: np.ndarray) -> np.ndarray:
        """How much more a row `(m, d)` resembles the window than the reference `(m,)`; itself not counted."""
        window = self.whitened(window)
        own = np.exp(-_squared_distances(window, window) / self.width)
        return (own.sum(axis=1) - 1) / max(1, len(window) - 1) - self._to(window).mean(axis=1)

    def _to(self, window: np.ndarray) -> np.ndarray:
        return np.exp(-_squared_distances(window, self.reference) / self.width)

    def _own(self, window: np.ndarray) -> float:
        kernel = np.exp(-_squared_distances(window, window) / self.width)
        return (kernel.sum(dtype=np.float64) - len(window)) / (len(window) * (len(window) - 1))


class ScoreDistance:
    """Kolmogorov and Smirnov's largest difference of two distribution functions, scaled.

    Args:
        reference: `(n,)`.
    """

    def __init__(self, reference: np.ndarray) -> None:
        self.reference = np.asarray(reference, dtype=np.float64)
        self._order = np.argsort(self.reference, kind="stable")

    def against(self, window: np.ndarray) -> float:
        """For a window `(m,)`."""
        values = np.concatenate([self.reference, window])
        first = np.arange(len(values)) < len(self.reference)
        return float(ScoreDistance(values).of_splits(first[None])[0])

    def of_splits(self, first: np.ndarray) -> np.ndarray:
        """As for `KernelDistance`."""
        ordered = self.reference[self._order]
        last_of_ties = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        passed = np.ascontiguousarray(first.T)[self._order].astype(np.float32)  # (n, k): a split a column
        np.cumsum(passed, axis=0, out=passed)  # whole numbers, exact
        n = passed[-1].astype(np.float64)
        m = len(passed) - n
        if len(last_of_ties) < len(passed):
            passed = passed[last_of_ties]
        # passed / n - (all - passed) / m, in place.
        passed *= (len(self._order) / (n * m)).astype(np.float32)
        passed -= (last_of_ties + 1).astype(np.float32)[:, None] / m.astype(np.float32)
        return np.sqrt(n * m / (n + m)) * np.maximum(passed.max(axis=0), -passed.min(axis=0))


class MeanDistance:
    """The difference of two means by the reference's standard deviation, scaled.

    Args:
        reference: `(n,)`.
    """

    def __init__(self, reference: np.ndarray) -> None:
        self.reference = np.asarray(reference, dtype=np.float64)
        self._unit = (self.reference - self.reference.mean()) / max(float(self.reference.std()), 1e-12)

    def against(self, window: np.ndarray) -> float:
        """For a window `(m,)`."""
        apart = (float(np.mean(window)) - self.reference.mean()) / max(float(self.reference.std()), 1e-12)
        return float(np.sqrt(scale(len(self.reference), len(window))) * abs(apart))

    def of_splits(self, first: np.ndarray) -> np.ndarray:
        """As for `KernelDistance`."""
        side = first.astype(np.float64)
        n = side.sum(axis=1)
        m = side.shape[1] - n
        inside = side @ self._unit
        return np.sqrt(n * m / (n + m)) * np.abs(inside / n - (self._unit.sum() - inside) / m)


class QualityDistance:
    """The largest `ScoreDistance` of any column: sharpness, noise, brightness and contrast of pictures.

    Args:
        reference: `(n, 4)`.
    """

    def __init__(self, reference: np.ndarray) -> None:
        self.reference = reference
        self._columns = [ScoreDistance(column) for column in reference.T]

    def against(self, window: np.ndarray) -> float:
        """For a window `(m, 4)`."""
        return max(test.against(column) for test, column in zip(self._columns, window.T, strict=True))

    def of_splits(self, first: np.ndarray) -> np.ndarray:
        """As for `KernelDistance`."""
        return np.max([test.of_splits(first) for test in self._columns], axis=0)


class UnseenTerms:
    """The share of a text's tokens that training never saw, more of it than in the reference, scaled.

    Args:
        unseen, tokens: `(n,)` of each text of the reference, how many of its different tokens were unseen, and how many
            it has.
    """

    def __init__(self, unseen: np.ndarray, tokens: np.ndarray) -> None:
        self.unseen, self.tokens = unseen.astype(np.float64), tokens.astype(np.float64)
        self.rate = float(self.unseen.sum() / self.tokens.sum())

    def against(self, rate: float, texts: int) -> float:
        """For a window of so many texts with this share; what is less than a point above the reference's counts as none.

        Where captions follow a template, the reference may have no unseen term at all; its splits then say that one can
        never come, and the first one would be an alarm.
        """
        return float(np.sqrt(scale(len(self.tokens), texts)) * (rate - self.rate - _LEAST_MORE))

    def of_splits(self, first: np.ndarray) -> np.ndarray:
        """As for `KernelDistance`."""
        side = first.astype(np.float64)
        n = side.sum(axis=1)
        m = side.shape[1] - n
        inside, tokens = side @ self.unseen, side @ self.tokens
        outside = (self.unseen.sum() - inside) / (self.tokens.sum() - tokens)
        return np.sqrt(n * m / (n + m)) * (outside - inside / tokens)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`(n, d), (m, d) -> (n, m)`."""
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * a @ b.T
    return np.maximum(squares, 0)
