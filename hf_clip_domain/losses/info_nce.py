"""The symmetric InfoNCE loss of CLIP, with one or several positives a row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hf_clip_domain.losses.base import positives_matrix
from hf_clip_domain.types import LossOutput


class InfoNCE(nn.Module):
    """Mean of the image-to-text and text-to-image cross-entropies over the batch.

    With several positives a row (equal captions, say) the target distribution is spread over them in proportion to
    their weight, so that a duplicate is never a negative (the "out" form of supervised contrastive learning).

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3;
    Khosla et al. 2020, "Supervised Contrastive Learning", equation 2, for several positives.
    """

    def forward(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        *,
        logit_scale: torch.Tensor,
        targets: torch.Tensor | None = None,
    ) -> LossOutput:
        """Score a batch of L2-normalised embeddings.

        Args:
            image_embeds (`(n, d)`), text_embeds (`(m, d)`): L2-normalised embeddings.
            logit_scale (scalar): the multiplier of the cosine itself (already exponentiated).
            targets: `None`, group ids `(n,)`, or a boolean or graded matrix `(n, m)`. A row without any positive
                takes no part in its direction.

        Raises:
            ClipDomainError: `targets` of a shape that does not fit.
        """
        # Half precision overflows at logit_scale 100, and the softmax needs the precision: always fp32 or better.
        with torch.autocast(image_embeds.device.type, enabled=False):
            dtype = torch.promote_types(image_embeds.dtype, torch.float32)
            image, text = image_embeds.to(dtype), text_embeds.to(dtype)
            logits = logit_scale.to(dtype) * image @ text.T  # (n, m)
            positives = positives_matrix(targets, *logits.shape, logits.device)
            image_to_text = _cross_entropy(logits, positives)
            text_to_image = _cross_entropy(logits.T, None if positives is None else positives.T)
            loss = (image_to_text + text_to_image) / 2
        parts = {"image_to_text_loss": image_to_text.detach(), "text_to_image_loss": text_to_image.detach()}
        return LossOutput(loss, parts)


def _cross_entropy(logits: torch.Tensor, positives: torch.Tensor | None) -> torch.Tensor:
    """Cross-entropy of rows against their positives, spread by weight; scalar."""
    if positives is None:
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
    weights = positives.to(logits.dtype)
    mass = weights.sum(dim=1)  # (n,)
    rows = -(weights * F.log_softmax(logits, dim=1)).sum(dim=1) / mass.clamp(min=torch.finfo(logits.dtype).tiny)
    # A batch with no positive at all has nothing to learn: zero, still connected to the graph.
    return rows[mass > 0].mean() if bool((mass > 0).any()) else rows.sum() * 0.0
