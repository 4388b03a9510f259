"""Train, validation and test, without a group or an identical picture on two sides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from transformers.utils import logging

logger = logging.get_logger(__name__)


def assign_splits(
    given: Sequence[str | None],
    keys: Sequence[Sequence[str]],
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> list[str | None]:
    """The split of every row; `None` where a row has to be left out.

    Rows that share a key (the group, the hash of the picture) form one cluster and stay together. Without any given
    split, clusters are dealt out by a hash of seed and key, so that adding rows moves none of the others. Given splits
    are kept; where validation is missing, it is carved out of training. A training (or validation) row whose cluster
    also reaches into the test (or validation) split is left out, and counted in a warning. A single cluster is training's,
    with a warning.

    Args:
        given: the source's own split of each row, or `None`.
        keys: what must not straddle two splits, one or several a row.
    """
    clusters = _clusters(keys)
    if not any(given):
        shares = {"test": test_fraction, "validation": validation_fraction}
        return _dealt(clusters, ["train"] * len(given), shares, seed)
    chosen: list[str | None] = [split or "train" for split in given]
    rank = {"test": 2, "validation": 1, "train": 0}
    highest: dict[str, int] = {}
    for cluster, split in zip(clusters, chosen, strict=True):
        highest[cluster] = max(highest.get(cluster, 0), rank[split])
    leaking = [row for row, cluster in enumerate(clusters) if rank[chosen[row]] < highest[cluster]]
    for row in leaking:
        chosen[row] = None
    if leaking:
        logger.warning(f"{len(leaking):,} rows share a picture or a group with a held-out split and are left out.")
    if "validation" not in chosen and validation_fraction > 0:
        chosen = _dealt(clusters, chosen, {"validation": validation_fraction}, seed)
    return chosen


def _dealt(clusters: Sequence[str], splits: list[str | None], shares: dict[str, float], seed: int) -> list[str | None]:
    """Move whole clusters of training rows to other splits, each by the interval its hash falls into."""
    movable = [cluster for cluster, split in zip(clusters, splits, strict=True) if split == "train"]
    place = {cluster: _share(f"{seed}:{cluster}") for cluster in movable}
    if len(place) == 1 and any(shares.values()):
        logger.warning(
            f"All {len(movable):,} rows belong to one group or picture and are training rows: nothing is held out. "
            "Give a split column, or another --group_column."
        )
        return splits
    home, low = dict.fromkeys(place, "train"), 0.0
    for name, share in shares.items():
        home |= {cluster: name for cluster in place if low <= place[cluster] < low + share}
        low += share
    # A handful of clusters can miss an interval: then the fullest split gives up its first cluster.
    for name in ("train", *(name for name, share in shares.items() if share > 0)):
        sizes = Counter(home.values())
        fullest = max(sizes, key=lambda split: sizes[split], default=name)
        if name not in sizes and sizes[fullest] > 1:
            home[min((cluster for cluster in home if home[cluster] == fullest), key=place.__getitem__)] = name
    return [home[cluster] if split == "train" else split for cluster, split in zip(clusters, splits, strict=True)]


def _clusters(keys: Sequence[Sequence[str]]) -> list[str]:
    """The smallest key that rows connected by shared keys have in common (union-find)."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for row in keys:
        for key in row:
            first, second = root(row[0]), root(key)
            if first != second:
                parent[max(first, second)] = min(first, second)
    return [root(row[0]) for row in keys]


def _share(text: str) -> float:
    """A number from 0 to below 1 that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64


def split_of(key: str, *, validation_fraction: float, test_fraction: float, seed: int) -> str:
    """The split of a row of a stream, by its key alone: the same intervals of the same hash."""
    place = _share(f"{seed}:{key}")
    return "test" if place < test_fraction else "validation" if place < test_fraction + validation_fraction else "train"
