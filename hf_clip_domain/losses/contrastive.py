"""One loss of freely chosen objective, similarity, positives and negatives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.losses.gather import mean_over_processes
from hf_clip_domain.losses.negatives import Negatives
from hf_clip_domain.losses.positives import RELATIONS, Positives
from hf_clip_domain.losses.streaming import sum_over_rows
from hf_clip_domain.similarity import SimilarityFunction, build_similarity, cosine, dot
from hf_clip_domain.types import LossOutput, Targets

Share = tuple[int, int]  # which part of how many
_GAP_ROWS = 256


class ContrastiveLoss(nn.Module):
    """What `InfoNCE` and `SigLIP` have in common: everything but the formula of a row.

    Args:
        similarity: name, dotted path or function, see `build_similarity`. A learned one trains with the model.
        positives: relation -> how strongly (above 0, at most 1) rows that share it belong together, see `Positives`;
            none of them and row i matches row i alone. Relations: "caption", "image" (the same picture), "label",
            "terms" (terms of the domain's glossary in the caption, by their overlap).
        negatives: a `Negatives`, or its settings as a mapping.
        label_smoothing: share of a row's target spread over all candidates, from 0 to below 1.
        temperature_scales: factors of `logit_scale`; the loss is the weighted mean of the loss at each of them.
        temperature_weights: their weights, normalised to sum 1; default: equal.
        resolution_weights: the weights of several sizes of the same pictures, normalised; default: equal.

    Raises:
        ClipDomainError: a setting outside its range, with the range.
    """

    # The trainer may ask for a share of the rows, see `forward`.
    shares_work = True
    source = ""

    def __init__(
        self,
        *,
        similarity: str | SimilarityFunction = "cosine",
        positives: Mapping[str, float] | None = None,
        negatives: Negatives | Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
        temperature_scales: Sequence[float] = (1.0,),
        temperature_weights: Sequence[float] | None = None,
        resolution_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.similarity = build_similarity(similarity)
        self.positives = _checked_relations({"caption": 1.0} if positives is None else positives)
        self.negatives = negatives if isinstance(negatives, Negatives) else _negatives(negatives or {})
        if not 0 <= label_smoothing < 1:
            raise ClipDomainError(f"label_smoothing {label_smoothing}: expected a share from 0 to below 1.")
        self.label_smoothing = label_smoothing
        if not temperature_scales or any(not 0 < scale < math.inf for scale in temperature_scales):
            raise ClipDomainError(f"temperature_scales {list(temperature_scales)}: expected factors above 0.")
        self.temperature_scales = tuple(temperature_scales)
        self.temperature_weights = normalised(temperature_weights, len(temperature_scales), "temperature_weights")
        self.resolution_weights = resolution_weights
        if resolution_weights is not None:
            normalised(resolution_weights, len(resolution_weights), "resolution_weights")

    @property
    def relations(self) -> tuple[str, ...]:
        """What the collator must tell about each row."""
        return tuple(self.positives)

    def forward(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        *,
        logit_scale: torch.Tensor,
        targets: Targets = None,
        share: Share = (0, 1),
        logit_bias: torch.Tensor | None = None,
    ) -> LossOutput:
        """Score a batch; computed in float32 (or float64) whatever autocast says, and in memory linear in the batch.

        Args:
            image_embeds: `(n, d)`, or `(r, n, d)` for the same pictures at r sizes; L2-normalised unless the
                similarity says otherwise.
            text_embeds: `(m, d)`, likewise.
            logit_scale (scalar): the multiplier of the similarity itself (already exponentiated).
            targets: see `hf_clip_domain.types.Loss`. A row without any positive takes no part in its direction.
            share: `(index, count)`: compute only this part of the rows. The mean of the `count` values, and of their
                gradients, is the whole batch's.
            logit_bias: the model's own bias, for an objective that has one.

        Raises:
            ClipDomainError: `targets` of a shape that does not fit.
        """
        # Half precision overflows at logit_scale 100, and the softmax needs the precision: always fp32 or better.
        with torch.autocast(image_embeds.device.type, enabled=False):
            dtype = torch.promote_types(image_embeds.dtype, torch.float32)
            images = [image.to(dtype) for image in (image_embeds if image_embeds.ndim == 3 else [image_embeds])]
            text, scale = text_embeds.to(dtype), logit_scale.to(dtype).reshape(())  # SiglipModel has (1,)
            positives = Positives(targets, len(images[0]), len(text), self.positives)
            # In evaluation pictures come at the model's own size alone.
            weights = self.resolution_weights if image_embeds.ndim == 3 else None
            sizes = normalised(weights, len(images), "resolution_weights")
            total, parts = text.new_zeros(()), {}
            for image, size_weight in zip(images, sizes, strict=True):
                for factor, weight in zip(self.temperature_scales, self.temperature_weights, strict=True):
                    for name, value, portion in self._losses(image, text, factor * scale, positives, share, logit_bias):
                        total = total + size_weight * weight * portion * value
                        parts[name] = parts.get(name, 0) + size_weight * weight * value.detach()
            parts["similarity_gap"] = self._gap(images[0], text, positives)
        if share[1] > 1:
            parts = mean_over_processes(parts)
        return LossOutput(total, parts)

    def _losses(self, image, text, scale, positives: Positives, share: Share, logit_bias):
        """`(name, value, portion)` of each direction: the loss is the sum of `portion * value`."""
        raise NotImplementedError

    def _over_rows(self, of: str, row_loss, image, text, scale, positives: Positives, share: Share, bias=None):
        """Mean over the rows (images or texts) that have a positive, in blocks; this share's part of it."""
        mine, others = (image, text) if of == "image" else (text, image)
        extra = () if bias is None else (bias,)
        learned = tuple(self.similarity.parameters()) if isinstance(self.similarity, nn.Module) else ()

        def block(start, stop, mine, others, scale, *rest):
            sides = (mine[start:stop], others) if of == "image" else (others, mine[start:stop])
            scores = self._scores(*sides, rest[len(extra) :])
            logits = scale * (scores if of == "image" else scores.T)
            logits = logits + rest[0] if extra else logits
            weights = positives.rows(start, stop, of, logits)
            return row_loss(logits, weights, self.negatives, scale, self.label_smoothing).sum()

        rows = part_of(len(mine), share)
        total = sum_over_rows(block, rows, len(others), mine, others, scale, *extra, *learned)
        return total * (share[1] / max(1, positives.count(of)))

    def _scores(self, image, text, learned=()):
        if self.similarity in (cosine, dot):  # normalised already where cosine is meant
            return image @ text.T
        if not learned:
            return self.similarity(image, text)
        names = [name for name, _ in self.similarity.named_parameters()]
        return torch.func.functional_call(self.similarity, dict(zip(names, learned, strict=True)), (image, text))

    def _gap(self, image, text, positives: Positives) -> torch.Tensor:
        """Mean similarity of positives less that of negatives, among the first rows of the batch."""
        with torch.no_grad():
            image, text = image[:_GAP_ROWS], text[:_GAP_ROWS]
            scores = self._scores(image, text)
            positive = positives.rows(0, len(image), "image", scores)[:, : len(text)] > 0
            if not bool(positive.any()) or bool(positive.all()):
                return scores.new_zeros(())
            return scores[positive].mean() - scores[~positive].mean()


def normalised(weights: Sequence[float] | None, count: int, name: str) -> tuple[float, ...]:
    """`count` weights of sum 1."""
    if weights is None:
        return (1 / count,) * count
    if len(weights) != count:
        raise ClipDomainError(f"{name} {list(weights)}: expected {count} of them, found {len(weights)}.")
    if any(not 0 <= weight < math.inf for weight in weights) or sum(weights) == 0:
        raise ClipDomainError(f"{name} {list(weights)}: expected numbers of at least 0, not all 0.")
    return tuple(weight / sum(weights) for weight in weights)


def part_of(count: int, share: Share) -> range:
    index, of = share
    return range(count * index // of, count * (index + 1) // of)


def _checked_relations(positives: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(positives, Mapping):
        raise ClipDomainError(
            f"positives {positives!r}: expected relation: weight, such as {{caption: 1, label: 0.5}}."
        )
    for name, weight in positives.items():
        if name not in RELATIONS:
            raise ClipDomainError(f"positives: unknown relation {name!r}: expected some of {', '.join(RELATIONS)}.")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1:
            raise ClipDomainError(f"positives: {name}: {weight}: expected a weight above 0 and at most 1.")
    return dict(positives)


def _negatives(settings: Mapping[str, Any]) -> Negatives:
    known = Negatives.__dataclass_fields__
    if unknown := set(settings) - set(known):
        raise ClipDomainError(f"negatives: unknown setting {sorted(unknown)[0]!r}: expected {', '.join(known)}.")
    return Negatives(**settings)
