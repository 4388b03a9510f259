"""The symmetric InfoNCE loss of CLIP, with any positives and negatives."""

from __future__ import annotations

from typing import Any

import torch

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.losses.contrastive import ContrastiveLoss, Share, part_of
from hf_clip_domain.losses.gather import log_add_exp_over_processes
from hf_clip_domain.losses.log_sum_exp import log_sum_exp, sums_of_products
from hf_clip_domain.losses.positives import Positives
from hf_clip_domain.losses.rows import cross_entropy_rows
from hf_clip_domain.similarity import cosine, dot

# More positives than this a row are no longer few: then blocks of rows are the better way.
_FEW = 64


class InfoNCE(ContrastiveLoss):
    """Weighted mean of the image-to-text and text-to-image cross-entropies over the batch.

    With several positives a row (equal captions, say) the target distribution is spread over them in proportion to
    their weight, so that a duplicate is never a negative (the "out" form of supervised contrastive learning).

    Args:
        image_to_text_weight: share of the image-to-text direction, from 0 to 1.
        settings: those of `ContrastiveLoss`.

    Raises:
        ClipDomainError: a setting that is out of range; names it.

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3;
    Khosla et al. 2020, "Supervised Contrastive Learning", equation 2, for several positives.
    """

    source = "Radford et al. 2021, arXiv 2103.00020"

    def __init__(self, *, image_to_text_weight: float = 0.5, **settings: Any) -> None:
        super().__init__(**settings)
        if not 0 <= image_to_text_weight <= 1:
            raise ClipDomainError(f"image_to_text_weight {image_to_text_weight}: expected a share from 0 to 1.")
        self.image_to_text_weight = image_to_text_weight

    def _losses(self, image, text, scale, positives: Positives, share: Share, logit_bias=None):
        values = self._from_products(image, text, scale, positives, share)
        if values is None:
            values = [
                self._over_rows(of, cross_entropy_rows, image, text, scale, positives, share)
                for of in ("image", "text")
            ]
        portions = (self.image_to_text_weight, 1 - self.image_to_text_weight)
        return zip(("image_to_text_loss", "text_to_image_loss"), values, portions, strict=True)

    def _from_products(self, image, text, scale, positives: Positives, share: Share):
        """The same two values from tiles that serve both directions, where all negatives weigh alike; else `None`."""
        plain = self.negatives.kind == "all" and not self.negatives.decoupled and not self.label_smoothing
        if not plain or self.similarity not in (cosine, dot):
            return None
        pairs = positives.pairs(limit=_FEW * len(image))
        if pairs is None:
            return None
        i, j = (index.to(image.device) for index in pairs)
        mine = part_of(len(image), share)
        of_images, of_texts = log_sum_exp(image[mine.start : mine.stop], text, scale)
        if share[1] > 1:
            of_texts = log_add_exp_over_processes(of_texts)
        here = (i >= mine.start) & (i < mine.stop)
        counts = torch.bincount(i, minlength=len(image)), torch.bincount(j, minlength=len(text))
        weights = [1 / count[anchor[here]].to(image.dtype) for count, anchor in zip(counts, (i, j), strict=True)]
        matched = scale * sums_of_products(image, text, i[here], j[here], torch.stack(weights, dim=1))
        # This process has the sums of its own rows alone, and those of all columns.
        return (
            (of_images.sum() - matched[0]) * share[1] / len(image),
            (of_texts.sum() - matched[1] * share[1]) / len(text),
        )
