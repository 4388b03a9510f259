"""Whether an exported model embeds as the one it was made of: angles between embeddings, and what retrieval makes of
them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from hf_clip_domain.evaluation.embedded import EmbeddedPairs, measure_retrieval
from hf_clip_domain.evaluation.retrieval import DIRECTIONS, KS

# What a format must keep: float32 only rounds otherwise; int8 is another model, judged by what it finds.
LARGEST_DIFFERENCE = {"float32": 1e-4}
LEAST_COSINE = {"float32": 0.9999, "int8": 0.98}
LARGEST_RETRIEVAL_DELTA = {"float32": 0.2, "int8": 1.0}


@dataclass(frozen=True)
class Parity:
    """How near an exported model is to the original, on the same pictures and texts.

    Attributes:
        images, texts: how many were embedded.
        image_cosine, text_cosine: the least cosine between an embedding and the original's.
        mean_cosine: the mean of all of them.
        difference: the largest difference of any number in the L2-normalised embeddings.
        recall: Recall@1, 5 and 10 in both directions, `[original, exported]`, from 0 to 1.
        retrieval_delta: the largest change among these, in points of a hundred.
    """

    images: int
    texts: int
    image_cosine: float
    text_cosine: float
    mean_cosine: float
    difference: float
    recall: Mapping[str, list[float]]
    retrieval_delta: float

    @classmethod
    def measure(cls, original: EmbeddedPairs, exported: EmbeddedPairs) -> Parity:
        cosines, difference = [], 0.0
        for side in ("image_embeds", "text_embeds"):
            one, other = (F.normalize(getattr(pairs, side).double(), dim=-1) for pairs in (original, exported))
            cosines.append((one * other).sum(dim=-1))
            difference = max(difference, (one - other).abs().max().item())
        scores = [measure_retrieval(pairs, replicates=0).metrics for pairs in (original, exported)]
        keys = [f"{direction}/recall@{k}" for direction in DIRECTIONS for k in KS]
        recall = {key: [found[key] for found in scores] for key in keys}
        return cls(
            images=len(original.rows),
            texts=len(original.texts),
            image_cosine=cosines[0].min().item(),
            text_cosine=cosines[1].min().item(),
            mean_cosine=torch.cat(cosines).mean().item(),
            difference=difference,
            recall=recall,
            retrieval_delta=100 * max(abs(after - before) for before, after in recall.values()),
        )

    def faults(self, precision: str) -> list[str]:
        """What is worse than the precision allows, one phrase each; empty where the export is good."""
        cosine, found = min(self.image_cosine, self.text_cosine), []
        if cosine < LEAST_COSINE[precision]:
            found.append(f"a cosine of {cosine:.5f} (at least {LEAST_COSINE[precision]})")
        if self.difference > LARGEST_DIFFERENCE.get(precision, float("inf")):
            found.append(f"embeddings differ by {self.difference:.1e} (at most {LARGEST_DIFFERENCE[precision]:.0e})")
        if self.retrieval_delta > LARGEST_RETRIEVAL_DELTA[precision] + 1e-9:
            found.append(
                f"recall moves by {self.retrieval_delta:.2f} points (at most {LARGEST_RETRIEVAL_DELTA[precision]})"
            )
        return found

    def sentence(self) -> str:
        return (
            f"{self.images} pictures and {self.texts} texts: least cosine {min(self.image_cosine, self.text_cosine):.6f}, "
            f"largest difference {self.difference:.1e}, Recall@1, 5 and 10 within {self.retrieval_delta:.2f} points."
        )

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "recall": dict(self.recall)}
