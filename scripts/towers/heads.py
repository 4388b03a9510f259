"""Both heads fitted on kept features: what training with both towers frozen comes to, in seconds."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from hf_clip_domain.evaluation.retrieval import retrieval_metrics
from hf_clip_domain.models.towers.model import Head
from towers.features import Features


class Heads(nn.Module):
    """The trainable part of a `TowersModel` with frozen towers, under the names of its state dict."""

    def __init__(self, features: Features, width: int, dropout: float) -> None:
        super().__init__()
        self.visual_projection = Head(features.images.shape[1], width, dropout)
        self.text_projection = Head(features.texts.shape[1], width, dropout)
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        for head, values in ((self.visual_projection, features.images), (self.text_projection, features.texts)):
            head.mean.copy_(values.mean(0))
            head.scale.copy_(values.std().reciprocal())
            # The principal directions first: unrelated words stay apart even where no pair speaks of them.
            _, vectors = torch.linalg.eigh(torch.cov(values.T))
            with torch.no_grad():
                kept = min(width, vectors.shape[1])
                head.linear.weight[:kept] = vectors.T.flip(0)[:kept]
                head.linear.bias.zero_()

    def forward(self, images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of length 1."""
        return normalize(self.visual_projection(images), dim=-1), normalize(self.text_projection(texts), dim=-1)


def fit(
    heads: Heads,
    features: Features,
    *,
    seed: int,
    steps: int = 300,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.3,
) -> None:
    """Symmetric InfoNCE on batches of `batch_size` pictures, one caption a picture; in place.

    Equal captions share the target. AdamW, a tenth of the steps for warm-up, then a cosine to nothing.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    heads.train()
    weights = [*heads.visual_projection.parameters(), *heads.text_projection.parameters()]
    groups = [{"params": weights, "weight_decay": weight_decay}]
    groups.append({"params": [heads.logit_scale], "weight_decay": 0.0, "lr": 10 * learning_rate})
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    warm = max(steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 1) * (1 + np.cos(np.pi * step / steps)) / 2
    )
    first, count = _captions_of(features)
    for _ in range(steps):
        pictures = rng.permutation(len(features.images))[:batch_size]
        chosen = torch.from_numpy(first[pictures] + rng.integers(1 << 30, size=len(pictures)) % count[pictures])
        image_embeds, text_embeds = heads(features.images[pictures], features.texts[chosen])
        captions = features.caption[chosen]
        same = (captions[:, None] == captions).float()
        target = same / same.sum(1, keepdim=True)
        logits = heads.logit_scale.exp().clamp(max=100) * image_embeds @ text_embeds.T
        loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    heads.eval()


@torch.no_grad()
def recall(heads: Heads, features: Features) -> float:
    """Text-to-image recall@10 in percent; equal captions are one query."""
    images, texts = heads(features.images, features.texts)
    first = {int(caption): row for row, caption in reversed(list(enumerate(features.caption)))}
    position = {caption: place for place, caption in enumerate(first)}
    pairs = [
        (int(image), position[int(caption)])
        for image, caption in zip(features.image_of_text, features.caption, strict=True)
    ]
    metrics = retrieval_metrics(images, texts[list(first.values())], pairs)
    return 100 * metrics["text_to_image/recall@10"]


def _captions_of(part: Features) -> tuple[np.ndarray, np.ndarray]:
    """The first caption of each picture and how many it has; captions stand in the order of the pictures."""
    count = np.bincount(part.image_of_text.numpy(), minlength=len(part.images))
    return np.cumsum(count) - count, count
