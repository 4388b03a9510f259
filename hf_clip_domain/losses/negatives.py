"""How much each negative of a row weighs in the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hf_clip_domain.errors import ClipDomainError

KINDS = ("all", "hard", "semi_hard", "weighted")


@dataclass(frozen=True)
class Negatives:
    """A choice of negatives. Weights are constants to the gradient, as importance weights are.

    Attributes:
        kind: "all" negatives weigh 1;
            "hard": the `ratio` of a row's negatives that are most similar weigh `weight`, the others `easy_weight`;
            "semi_hard": those less similar than the row's best positive but by at most `margin` weigh `weight`, the
            others `easy_weight`; a row with none keeps all (Schroff et al. 2015, "FaceNet", section 3.2);
            "weighted": in proportion to `exp(beta * logit)`, with mean 1 over the row (Robinson et al. 2021,
            "Contrastive Learning with Hard Negative Samples", equation 4; Radenovic et al. 2023, "Filtering,
            Distillation, and Hard Negatives for Vision-Language Pre-Training", section 3.3, HN-NCE).
        ratio: share of the negatives, above 0 to 1.
        weight, easy_weight: factors, at least 0.
        margin: in units of the similarity, above 0.
        beta: sharpness of the weighting, at least 0; 0 is "all".
        decoupled: leave the positives out of the denominator (Yeh et al. 2022, "Decoupled Contrastive Learning").

    Raises:
        ClipDomainError: an unknown kind, or a number out of these ranges.
    """

    kind: str = "all"
    ratio: float = 0.25
    weight: float = 1.0
    easy_weight: float = 0.0
    margin: float = 0.2
    beta: float = 0.5
    decoupled: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ClipDomainError(f"negatives: kind {self.kind!r}: expected one of {', '.join(KINDS)}.")
        for name, good, expected in (
            ("ratio", 0 < self.ratio <= 1, "above 0 and at most 1"),
            ("weight", 0 < self.weight < math.inf, "above 0"),
            ("easy_weight", 0 <= self.easy_weight < math.inf, "at least 0"),
            ("margin", 0 < self.margin < math.inf, "above 0"),
            ("beta", 0 <= self.beta < math.inf, "at least 0"),
        ):
            if not good:
                raise ClipDomainError(f"negatives: {name} {getattr(self, name)}: expected a number {expected}.")

    def weights(self, logits: torch.Tensor, positive: torch.Tensor, scale: torch.Tensor) -> torch.Tensor | None:
        """Factors `(b, m)` of the negatives in `logits` `(b, m)`; `None` when all weigh 1.

        Args:
            logits: similarities times `scale`, of some rows against all candidates.
            positive: `(b, m)` boolean; the factors of these are without meaning.
            scale: the multiplier in `logits`, to bring `margin` to their unit.
        """
        if self.kind == "all" or (self.kind == "weighted" and self.beta == 0):
            return None
        scores = logits.detach().masked_fill(positive, -torch.inf)  # (b, m)
        count = (~positive).sum(dim=1)  # (b,) negatives a row
        if self.kind == "weighted":
            shares = torch.nan_to_num((self.beta * scores).softmax(dim=1))  # a row without negatives: all 0
            return shares * count[:, None]
        if self.kind == "hard":
            keep = (self.ratio * count).ceil().long()
            if int(keep.max()) == 0:
                return torch.zeros_like(scores)
            best = scores.topk(int(keep.max()), dim=1).values
            chosen = scores >= best.gather(1, (keep - 1).clamp(min=0)[:, None])
        else:
            best = logits.detach().masked_fill(~positive, -torch.inf).amax(dim=1, keepdim=True)
            chosen = (scores < best) & (scores > best - self.margin * scale.detach())
            chosen |= ~chosen.any(dim=1, keepdim=True)
        return torch.where(chosen, self.weight, self.easy_weight).to(scores.dtype)
