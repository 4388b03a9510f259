"""What adapting cost outside the domain: the same retrieval scores on general pairs, called the probe.

The probe is scored at every evaluation of a training run on its validation split, where models are chosen, and before
and after on its test split, which no choice ever sees. All of it is told by one figure, the mean of Recall@10 in both
directions: `general/retained_recall@10` is its share of the base model's, `general/lost_points` the difference in
percentage points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.domains import Domain
from hf_clip_domain.evaluation.evaluator import RetrievalEvaluator
from hf_clip_domain.evaluation.measurement import Measurement, joined
from hf_clip_domain.models.image_sizes import image_settings

GENERAL = "general"
MEAN_RECALL = f"{GENERAL}/mean_recall@10"
RETAINED = f"{GENERAL}/retained_recall@10"
LOST = f"{GENERAL}/lost_points"
# Prepared pictures are kept up to this size: 500 of 224 x 224 pixels take 290 MiB.
KEEP_BYTES = 512 * 2**20


class RepeatedEvaluator(RetrievalEvaluator):
    """A `RetrievalEvaluator` called many times: pictures are decoded and cut to the model's square once.

    Arguments as for `RetrievalEvaluator`, and a domain is needed. Beyond `keep_bytes` of prepared pictures the others
    are read again at every call.
    """

    def __init__(
        self, pairs: Sequence[dict[str, Any]], processor: Any, *, domain: Domain, keep_bytes: int = KEEP_BYTES, **more
    ) -> None:
        super().__init__(pairs, processor, domain=domain, **more)
        self.pairs = _Prepared(pairs, ImageTransform(domain, *image_settings(processor)), keep_bytes)


class ForgettingProbe(RepeatedEvaluator):
    """Scores general pairs: `general/...` as `RetrievalEvaluator` gives them, and `general/mean_recall@10`."""

    def __init__(self, pairs: Sequence[dict[str, Any]], processor: Any, *, domain: Domain, **more) -> None:
        super().__init__(pairs, processor, domain=domain, name=GENERAL, **more)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        scores = super().__call__(model)
        return {**scores, MEAN_RECALL: mean_recall(scores, GENERAL)}


def mean_recall(scores: Mapping[str, float], group: str = "") -> float:
    """The mean over both directions of Recall@10, from 0 to 1."""
    prefix = f"{group}/" if group else ""
    return sum(scores[f"{prefix}{direction}/recall@10"] for direction in ("image_to_text", "text_to_image")) / 2


def retained(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """`general/retained_recall@10` (a share) and `general/lost_points` from the scores of a probe; nothing without."""
    if MEAN_RECALL not in before or MEAN_RECALL not in after:
        return {}
    share = after[MEAN_RECALL] / before[MEAN_RECALL] if before[MEAN_RECALL] else math.nan
    return {RETAINED: share, LOST: 100 * (before[MEAN_RECALL] - after[MEAN_RECALL])}


def with_retained(before: Measurement, after: Measurement) -> Measurement:
    """`after` with what `retained` says of the two."""
    return joined((after, Measurement(metrics=retained(before.metrics, after.metrics))))


class _Prepared:
    """Rows whose pictures are the model's pixels, `(3, size, size)`, kept once they were needed."""

    def __init__(self, pairs: Sequence[dict[str, Any]], transform: ImageTransform, keep_bytes: int) -> None:
        self.pairs, self.transform = pairs, transform
        self.room = keep_bytes // (3 * transform.size**2 * 4)
        self.kept: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if row in self.kept:
            return {"image": self.kept[row]}
        pair = self.pairs[row]
        if len(self.kept) >= self.room:
            return pair
        self.kept[row] = self.transform.evaluation(pair["image"])
        return {**pair, "image": self.kept[row]}
