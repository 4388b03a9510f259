"""Several losses in one, with fixed weights or with weights that balance themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.losses.base import build_loss, is_built_in
from hf_clip_domain.similarity import SimilarityFunction, build_similarity
from hf_clip_domain.types import LossOutput

BALANCES = ("fixed", "uncertainty")


class WeightedSum(nn.Module):
    """A sum of losses of the same batch and the same similarity.

    Args:
        terms: mappings with the `name` of a loss, its `weight` (default 1) and its settings; or loss modules.
        similarity: of all terms, see `build_similarity`: a model has one.
        balance: "fixed" adds `weight * loss`; "uncertainty" learns the weights, beginning with those given:
            `exp(-s) * loss + s / 2` with a learned `s` a term (Kendall et al. 2018, "Multi-Task Learning Using
            Uncertainty to Weigh Losses", equation 10, with s the logarithm of the variance).

    Raises:
        ClipDomainError: no term, a weight that is not above 0, or an unknown balance.
    """

    shares_work = True

    def __init__(
        self,
        *,
        terms: Sequence[Mapping[str, Any] | nn.Module],
        similarity: str | SimilarityFunction = "cosine",
        balance: str = "fixed",
    ) -> None:
        super().__init__()
        if balance not in BALANCES:
            raise ClipDomainError(f"balance {balance!r}: expected one of {', '.join(BALANCES)}.")
        if not terms:
            raise ClipDomainError(
                "sum: expected a list of terms, such as [{name: info_nce}, {name: siglip, weight: 0.1}]."
            )
        self.similarity = build_similarity(similarity)
        self.names, weights, losses = [], [], []
        for term in terms:
            loss, name, weight = self._built(term)
            losses.append(loss)
            weights.append(weight)
            self.names.append(f"{name}_{len(self.names)}" if name in self.names else name)
        for loss in losses:  # a learned similarity is one module, and stands in the tree once
            if loss._modules.pop("similarity", None) is not None:
                loss.__dict__["similarity"] = self.similarity
        self.losses = nn.ModuleList(losses)
        logarithms = -torch.tensor([math.log(weight) for weight in weights])
        self.log_variances = nn.Parameter(logarithms) if balance == "uncertainty" else None
        self.weights = tuple(weights)

    @property
    def relations(self) -> tuple[str, ...]:
        """What the collator must tell about each row."""
        needed = [name for loss in self.losses for name in getattr(loss, "relations", ("caption",))]
        return tuple(dict.fromkeys(needed))

    @property
    def source(self) -> str:
        """The papers of the terms."""
        return "; ".join(dict.fromkeys(filter(None, (getattr(loss, "source", "") for loss in self.losses))))

    def leave_bias_to_the_model(self) -> None:
        """The model has a bias of its own: each term that has one gives it up."""
        for loss in self.losses:
            if hasattr(loss, "leave_bias_to_the_model"):
                loss.leave_bias_to_the_model()

    def begin(self, *batch) -> bool:
        """Let each term that begins by a first batch do so; whether any did."""
        return any([loss.begin(*batch) for loss in self.losses if hasattr(loss, "begin")])

    def forward(self, image_embeds, text_embeds, *, logit_scale, targets=None, **options) -> LossOutput:
        """See `ContrastiveLoss.forward`; parts carry the names of their terms."""
        total, parts = 0.0, {}
        for index, (name, loss) in enumerate(zip(self.names, self.losses, strict=True)):
            more = options if getattr(loss, "shares_work", False) else {}
            output = loss(image_embeds, text_embeds, logit_scale=logit_scale, targets=targets, **more)
            if self.log_variances is None:
                weight = self.weights[index]
                total = total + weight * output.loss
            else:
                log_variance = self.log_variances[index]
                weight = (-log_variance).exp()
                total = total + weight * output.loss + log_variance / 2
                parts[f"{name}/weight"] = weight.detach()
            parts |= {key if key == "similarity_gap" else f"{name}/{key}": value for key, value in output.parts.items()}
        return LossOutput(total, parts)

    def _built(self, term: Mapping[str, Any] | nn.Module) -> tuple[nn.Module, str, float]:
        if isinstance(term, nn.Module):
            if getattr(term, "similarity", self.similarity) is not self.similarity:
                raise ClipDomainError(
                    f"sum: {type(term).__name__} has another similarity than the sum; a model has one."
                )
            return term, type(term).__name__, 1.0
        settings = dict(term)
        name, weight = settings.pop("name", None), settings.pop("weight", 1.0)
        if not isinstance(name, str):
            raise ClipDomainError(f"sum: the term {dict(term)} lacks the name of its loss.")
        if not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ClipDomainError(f"sum: {name}: weight {weight}: expected a number above 0.")
        if "similarity" in settings:
            raise ClipDomainError(f"sum: {name}: similarity: give it once, beside terms; a model has one similarity.")
        if is_built_in(name):
            settings["similarity"] = self.similarity
        return build_loss(name, **settings), name, float(weight)
