"""The teachers' own CLIP: two linear heads that bring both frozen teachers into one space of 192 dimensions.

Trained contrastively on the pairs; few weights, strongly regularised, stopped by the held-out groups' recall.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, dropout, normalize

EMBEDDING = 192


class Head(nn.Module):
    """Standardise, drop, project, normalise: (n, d) -> (n, 192)."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("scale", features.std().reciprocal())
        self.linear = nn.Linear(features.shape[1], EMBEDDING)
        # The principal directions first: unrelated words stay apart even where no pair speaks of them.
        _, _, vectors = torch.linalg.svd(features - self.mean, full_matrices=False)
        with torch.no_grad():
            self.linear.weight[: len(vectors)].copy_(vectors[:EMBEDDING])
            self.linear.bias.zero_()

    def forward(self, features: torch.Tensor, drop: float = 0.0) -> torch.Tensor:
        standard = (features - self.mean) * self.scale
        return normalize(self.linear(dropout(standard, drop, training=drop > 0)), dim=-1)


def multi_positive_loss(logits: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE where rows with equal captions or pictures (`same`, (n, n) bool) share the target."""
    target = same / same.sum(1, keepdim=True)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def recall_at_10(images: torch.Tensor, texts: torch.Tensor, image_of_text: np.ndarray) -> float:
    """Share of texts whose own picture is among the ten nearest."""
    scores = texts @ images.T
    own = scores.gather(1, torch.from_numpy(image_of_text).view(-1, 1))
    return ((scores >= own).sum(1) <= 10).float().mean().item()


def train_heads(
    maps: torch.Tensor,
    pair_of_view: np.ndarray,
    texts: torch.Tensor,
    texts_of_pair: Sequence[np.ndarray],
    held_maps: torch.Tensor,
    held_texts: torch.Tensor,
    held_image_of_text: np.ndarray,
    *,
    seed: int,
    steps: int = 1200,
) -> tuple[Head, Head, float]:
    """Image head, text head and the held-out recall@10 of the best step.

    Args:
        maps: pooled teacher features of the views, (v, 256).
        pair_of_view: the pair each view shows, (v,).
        texts: teacher features of all texts, (t, 384).
        texts_of_pair: rows of `texts` for each pair.
        held_maps, held_texts, held_image_of_text: the held-out pairs, to stop by.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    image_head, text_head = Head(maps), Head(texts)
    logit_scale = nn.Parameter(torch.tensor(3.0))
    parameters = [*image_head.parameters(), *text_head.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "weight_decay": 0.3}, {"params": [logit_scale], "weight_decay": 0.0}], lr=1e-3
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    views_of_pair = [np.flatnonzero(pair_of_view == pair) for pair in range(len(texts_of_pair))]
    best, best_state = -1.0, None
    for step in range(steps):
        chosen = rng.choice(len(texts_of_pair), size=min(512, len(texts_of_pair)), replace=False)
        image = image_head(maps[[rng.choice(views_of_pair[pair]) for pair in chosen]], drop=0.3)
        rows = torch.tensor([rng.choice(texts_of_pair[pair]) for pair in chosen])
        text = text_head(texts[rows], drop=0.3)
        same = (rows.view(-1, 1) == rows).float()
        loss = multi_positive_loss(logit_scale.exp().clamp(max=60) * image @ text.T, same)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            with torch.no_grad():
                recall = recall_at_10(image_head(held_maps), text_head(held_texts), held_image_of_text)
            if recall > best:
                best = recall
                best_state = [
                    {key: value.clone() for key, value in head.state_dict().items()} for head in (image_head, text_head)
                ]
    image_head.load_state_dict(best_state[0])
    text_head.load_state_dict(best_state[1])
    return image_head.requires_grad_(False), text_head.requires_grad_(False), best
