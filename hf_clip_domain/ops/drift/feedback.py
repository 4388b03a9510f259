"""Measured degradation: how well the model orders labelled pairs from production, against the held-out pairs.

Recall depends on how many candidates there are, and two sets never have the same number. Here each picture's own caption
competes with 19 others drawn from its set; the expected hit rate over all draws is exact, and the same measure for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import gammaln

from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.bootstrap import REPLICATES, interval, resamples
from hf_clip_domain.ops.drift.reference import FEWEST_ROWS, Reference

CANDIDATES = 20


@dataclass(frozen=True)
class Degradation:
    """Recall@1 among 20 of labelled feedback and of the reference, their difference, and 95% intervals."""

    pairs: int
    recall: float
    recall_interval: list[float] | None
    reference: float
    change: float
    change_interval: list[float] | None

    @property
    def degraded(self) -> bool:
        """Whether the interval of the change lies below zero."""
        return self.change_interval is not None and self.change_interval[1] < 0

    def sentence(self) -> str:
        """For people."""
        low, high = self.change_interval or (float("nan"), float("nan"))
        verdict = "measured degradation" if self.degraded else "no degradation is shown"
        return (
            f"{self.pairs} labelled pairs: the right text is first among {CANDIDATES} for {self.recall:.1%} of the pictures, "
            f"and for {self.reference:.1%} in the reference; change {100 * self.change:+.1f} points "
            f"[{100 * low:+.1f}, {100 * high:+.1f}]: {verdict}."
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "candidates": CANDIDATES, "degraded": self.degraded}


def measure_feedback(embedder: ClipEmbedder, pairs: Sequence[dict[str, Any]], reference: Reference) -> Degradation:
    """Embed labelled pairs (rows with `image` and `text`) and compare.

    Raises:
        ClipDomainError: too few pairs, or a reference made of requests, which has no pairs known to be right.
    """
    if "image_embeds" not in reference.arrays:
        raise ClipDomainError("--feedback needs a reference made from held-out pairs; this one was made of requests.")
    if len(pairs) < FEWEST_ROWS:
        raise ClipDomainError(f"--feedback: {len(pairs)} pairs are too few; expected at least {FEWEST_ROWS}.")
    texts = [row["text"] if isinstance(row["text"], str) else row["text"][0] for row in pairs]
    images = embedder.embed_images(row["image"] for row in pairs)
    found = hits(embedder, images, embedder.embed_texts(texts))
    kept = (torch.from_numpy(reference.arrays[f"{side}_embeds"].astype(np.float32)) for side in ("image", "text"))
    own = hits(embedder, *kept)
    means = [
        np.array([weights @ values / weights.sum() for weights in resamples(len(values), REPLICATES, seed)])
        for seed, values in enumerate((found, own))
    ]
    change = float(found.mean() - own.mean())
    apart = interval(means[0] - means[1])
    return Degradation(len(found), float(found.mean()), interval(means[0]), float(own.mean()), change, apart)


def hits(embedder: ClipEmbedder, images: torch.Tensor, texts: torch.Tensor) -> np.ndarray:
    """For each picture `(n, d)`, the chance that its text `(n, d)` scores above 19 others drawn from the rest: `(n,)`.

    With `a` of the n - 1 others ahead (equal texts do not count, ties half), that is C(n - 1 - a, 19) / C(n - 1, 19).
    """
    chances, unit = np.empty(len(images)), F.normalize(texts, dim=-1)
    for start in range(0, len(images), 256):
        rows = slice(start, start + 256)
        scores = embedder.similarity_function(images[rows], texts)  # (b, n)
        own = scores[torch.arange(len(scores)), start + torch.arange(len(scores))][:, None]
        same = unit[rows] @ unit.T > 1 - 1e-4  # (b, n), itself included
        others = (~same).sum(dim=1).double().numpy()
        ahead = ((scores > own) & ~same).sum(dim=1).double().numpy()
        ahead += ((scores == own) & ~same).sum(dim=1).double().numpy() / 2
        chances[rows] = _chance(others, ahead, CANDIDATES - 1)
    return chances


def _chance(others: np.ndarray, ahead: np.ndarray, drawn: int) -> np.ndarray:
    behind = others - ahead
    drawn = np.minimum(drawn, others)
    log = gammaln(behind + 1) - gammaln(np.maximum(behind - drawn, 0) + 1)
    log -= gammaln(others + 1) - gammaln(others - drawn + 1)
    return np.where(behind >= drawn, np.exp(log), 0.0)
