"""The pairwise sigmoid loss of SigLIP."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.losses.contrastive import ContrastiveLoss, Share
from hf_clip_domain.losses.positives import Positives
from hf_clip_domain.losses.rows import sigmoid_rows

# Rows of the first batch by which the bias begins.
_BEGINNING = 1024


class SigLIP(ContrastiveLoss):
    """Binary cross-entropy of every pair, summed over a row and averaged over the images.

    The logits have a learned bias, since nearly all pairs are negatives: the model's own where it has one
    (`SiglipModel`), else the loss's, which trains with the model. Negatives are chosen or weighted for each image.

    Args:
        logit_bias: where the loss's own bias begins; by default where the first batch's mean logit is that of one
            positive in a row: `-scale * mean similarity - log(n)`. (The paper's -10 belongs to its scale of 10.)
        settings: those of `ContrastiveLoss`.

    Raises:
        ClipDomainError: `decoupled` negatives, or a setting that is out of range.

    Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", equation 1 and section 3.2.
    """

    source = "Zhai et al. 2023, arXiv 2303.15343"

    def __init__(self, *, logit_bias: float | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if self.negatives.decoupled:
            raise ClipDomainError("negatives: decoupled has no meaning for siglip, which has no denominator.")
        self.bias = nn.Parameter(torch.tensor(float(logit_bias or 0.0)))
        self.register_buffer("begun", torch.tensor(logit_bias is not None))

    def leave_bias_to_the_model(self) -> None:
        """The model has a bias of its own, so this one would never train."""
        self.bias = None

    def _losses(self, image, text, scale, positives: Positives, share: Share, logit_bias=None):
        bias = self.bias if logit_bias is None else logit_bias
        if logit_bias is None:
            self.begin(image.detach(), text.detach(), scale.detach())
        if bias is None:
            raise ClipDomainError("siglip needs a bias: hand the model's over as `logit_bias`.")
        bias = bias.to(image.dtype).reshape(())
        value = self._over_rows("image", sigmoid_rows, image, text, scale, positives, share, bias)
        return [("pair_loss", value, 1.0)]

    @torch.no_grad()
    def begin(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor) -> bool:
        """Set the bias by a first batch, unless it has begun or is the model's; whether it was set."""
        if self.bias is None or bool(self.begun):
            return False
        image = image_embeds[0] if image_embeds.ndim == 3 else image_embeds
        scores = self._scores(image[:_BEGINNING].float(), text_embeds[:_BEGINNING].float())
        self.bias.fill_(-(logit_scale.reshape(()) * scores.mean()) - math.log(len(text_embeds)))
        self.begun.fill_(True)
        return True
