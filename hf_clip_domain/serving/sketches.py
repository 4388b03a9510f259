"""What statistics keep of an embedding and of a text: less than the thing itself, enough to compare distributions.

A sketch is the embedding's direction, projected to 64 dimensions by fixed random signs and rounded to a byte each:
inner products survive to about 1/8 (Johnson and Lindenstrauss 1984; signs: Achlioptas 2003, "Database-friendly random
projections"). A text's tokens are kept as hashes, and only as counts over many texts. Neither is anonymous: whoever has
the model can test whether a picture or a sentence he guesses was asked for, and read the topic off a sketch; nobody can
read back the picture or the sentence. docs/drift.md says more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

SKETCH_DIM = 64
# Coordinates of a unit vector's sketch lie around 1/8; those beyond 1 are cut.
_STEPS = 127
# More than any CLIP vocabulary, so that few tokens share a bucket.
BUCKETS = 1 << 16


def sketch(embeds: np.ndarray) -> np.ndarray:
    """Embeddings `(n, d)` of any length to sketches `(n, 64)` int8, the same in every process and version.

    A row of zeros, or one that is not finite, becomes zeros.
    """
    embeds = np.asarray(embeds, dtype=np.float32)
    length = np.linalg.norm(embeds, axis=1, keepdims=True)
    usable = np.isfinite(length) & (length > 0)
    unit = np.where(usable, embeds, 0) / np.where(usable, length, 1)
    projected = unit @ _signs(embeds.shape[1])  # (n, 64), length about 1
    return np.rint(projected.clip(-1, 1) * _STEPS).astype(np.int8)


def restore(sketches: np.ndarray) -> np.ndarray:
    """Sketches as unit vectors `(n, 64)` float32, to be compared with each other."""
    values = sketches.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1)


def buckets(token_ids: Iterable[int]) -> np.ndarray:
    """The different hashed tokens of one text, ascending, each below `BUCKETS`."""
    return np.unique(_hash(np.fromiter(token_ids, dtype=np.uint64)))


def count_texts(texts: Sequence[np.ndarray]) -> np.ndarray:
    """In how many texts each bucket occurs: `(BUCKETS,)` int64."""
    joined = np.concatenate([np.empty(0, dtype=np.int64), *texts])
    return np.bincount(joined, minlength=BUCKETS)


def _hash(ids: np.ndarray) -> np.ndarray:
    """Fibonacci hashing: multiplication by 2^64 / golden ratio, the highest 16 bits."""
    return ((ids * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(48)).astype(np.int64)


@lru_cache(maxsize=4)
def _signs(dim: int) -> np.ndarray:
    """`(dim, 64)` of +-1/8. From a hash, since a random generator's stream may change between versions."""
    bits = np.unpackbits(
        np.frombuffer(hashlib.shake_256(f"sketch {dim}".encode()).digest(dim * SKETCH_DIM // 8), dtype=np.uint8)
    )
    return (2.0 * bits.reshape(dim, SKETCH_DIM) - 1).astype(np.float32) / np.float32(np.sqrt(SKETCH_DIM))
