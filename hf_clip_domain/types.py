"""The contracts between the rooms: what a loss takes and gives, what a similarity and an evaluator are.

Shapes use ``n`` images, ``m`` texts and ``d`` embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn


@dataclass(frozen=True)
class Embeddings:
    """Paired embeddings of one contrastive batch.

    Attributes:
        image (`torch.Tensor` of shape `(n, d)`): projected image embeddings.
        text (`torch.Tensor` of shape `(m, d)`): projected text embeddings.
    """

    image: torch.Tensor
    text: torch.Tensor


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns.

    Attributes:
        loss (scalar `torch.Tensor`): the value to differentiate.
        parts (`dict[str, torch.Tensor]`): detached scalars worth logging, by name.
    """

    loss: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)


# `None`, ids or a matrix, or what rows have in common by name; see `Loss`.
Targets = torch.Tensor | Mapping[str, torch.Tensor] | None


class Loss(Protocol):
    """An `nn.Module` that scores a batch of paired embeddings.

    `targets` is `None` (row i matches row i), a boolean or graded `(n, m)` matrix, `(n,)` group ids (rows with equal
    ids are positives of one another), or a mapping of relations such as `{"caption": (n,) ids, "label": (n,) ids}`
    for a loss that weighs them.

    What the trainer asks of a loss beyond this call, each optional: `relations`, the names of those the batch must
    hold (default: "caption"); `similarity`, saved with the model (default: cosine); `begin(image_embeds, text_embeds,
    logit_scale)`, called before every batch, to set its parameters by the first one (true when it did);
    `shares_work = True` when it takes `share=(index, count)` and then computes its part of the rows only.
    """

    def __call__(
        self,
        image_embeds: torch.Tensor,  # (n, d)
        text_embeds: torch.Tensor,  # (m, d)
        *,
        logit_scale: torch.Tensor,
        targets: Targets = None,
    ) -> LossOutput: ...


class Similarity(Protocol):
    """A function of two sets of embeddings, without temperature: `(n, d), (m, d) -> (n, m)`."""

    def __call__(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor: ...


class Evaluator(Protocol):
    """Scores a model; the trainer calls it at every evaluation and logs what it returns."""

    def __call__(self, model: nn.Module) -> dict[str, float]: ...
