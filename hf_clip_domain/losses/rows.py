"""The losses of some rows of a batch, given all their logits: the definitions, and the only place they stand."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hf_clip_domain.losses.negatives import Negatives


def cross_entropy_rows(
    logits: torch.Tensor,
    positives: torch.Tensor,
    negatives: Negatives,
    scale: torch.Tensor,
    label_smoothing: float,
) -> torch.Tensor:
    """InfoNCE of each row, 0 for a row without positives: `(b, m), (b, m) -> (b,)`.

    The target distribution is spread over a row's positives by weight (Khosla et al. 2020, "Supervised Contrastive
    Learning", equation 2); `label_smoothing` gives a share of it to all candidates alike (Szegedy et al. 2016).
    """
    positive = positives > 0
    mass = positives.sum(dim=1)  # (b,)
    target = positives / mass.clamp(min=torch.finfo(logits.dtype).tiny)[:, None]
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    factors = negatives.weights(logits, positive, scale)
    in_denominator = logits
    if factors is not None:
        in_denominator = logits + torch.where(positive, 0.0, factors.log())
    if negatives.decoupled:
        in_denominator = in_denominator.masked_fill(positive, -torch.inf)
    log_denominator = _logsumexp(in_denominator)  # (b,)
    rows = log_denominator * target.sum(dim=1) - (target * logits).sum(dim=1)
    return torch.where(mass > 0, rows, 0.0)


def sigmoid_rows(
    logits: torch.Tensor,
    positives: torch.Tensor,
    negatives: Negatives,
    scale: torch.Tensor,
    label_smoothing: float,
) -> torch.Tensor:
    """Sum over each row's pairs of the binary cross-entropy: `(b, m), (b, m) -> (b,)`.

    Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", equation 1. A graded positive counts in
    part as a positive and in part as a negative.
    """
    factors = negatives.weights(logits, positives > 0, scale)
    target = positives * (1 - label_smoothing) + label_smoothing / 2 if label_smoothing else positives
    as_positive, as_negative = F.logsigmoid(logits), F.logsigmoid(-logits)
    if factors is not None:
        as_negative = as_negative * torch.where(positives > 0, 1.0, factors)
    return -(target * as_positive + (1 - target) * as_negative).sum(dim=1)


def _logsumexp(values: torch.Tensor) -> torch.Tensor:
    """Along rows, 0 with a zero gradient for a row of nothing but `-inf` (where torch would give NaN)."""
    nothing = (values == -torch.inf).all(dim=1)
    if not bool(nothing.any()):
        return values.logsumexp(dim=1)
    return torch.where(nothing, 0.0, values.masked_fill(nothing[:, None], 0.0).logsumexp(dim=1))
