"""Retrieval in both directions, for data with many captions an image and many images a caption.

- A query's rank is that of its best positive: 1 + the number of negatives that score at least as high.
- Ties are pessimistic: a negative within float noise of the positive ranks ahead of it. A model that gives
  every picture the same embedding therefore scores 0, not 100%.
- Recall@k is the share of queries whose rank is at most k. Other positives never push the best one down.
- Chance is the expected recall of a random ranking, exactly: a query with p positives among N candidates is a
  hit in the first k with probability `1 - C(N-p, k) / C(N, k)` (hypergeometric), averaged over the queries.
- A query without a positive is not asked, but stays among the candidates of the other direction.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.similarity import cosine

KS = (1, 5, 10)
# Two scores this close (relative to their size, at least 1) differ by float32 rounding, not by knowledge.
TIE_TOLERANCE = 1e-6


def retrieval_metrics(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    positives: Sequence[tuple[int, int]] | torch.Tensor | None = None,
    *,
    similarity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = cosine,
    ks: Sequence[int] = KS,
    chunk: int = 1024,
) -> dict[str, float]:
    """Score image-to-text and text-to-image retrieval.

    Args:
        image_embeds (`(n, d)`): one row an image.
        text_embeds (`(m, d)`): one row a *different* caption.
        positives: pairs `(image index, text index)` that belong together, as a list or a `(p, 2)` integer
            tensor; `None` when image i belongs to text i alone.
        similarity: `(a, d), (b, d) -> (a, b)`, images first, larger is more alike.
        ks: the depths of recall.
        chunk: at most `chunk * chunk` scores are held at a time.

    Returns:
        Flat `dict[str, float]`: for each direction (`image_to_text`, `text_to_image`) `recall@k`,
        `chance_recall@k`, `mean_rank`, `median_rank`, `mrr`, `candidates` and `queries`; and `candidates`,
        the number of images.

    Raises:
        ClipDomainError: an embedding is not finite, the shapes disagree, or there is no positive pair.
    """
    image_embeds, text_embeds = _checked(image_embeds, "image"), _checked(text_embeds, "text")
    if image_embeds.shape[1] != text_embeds.shape[1]:
        raise ClipDomainError(
            f"image embeddings have {image_embeds.shape[1]} dimensions and text embeddings "
            f"{text_embeds.shape[1]}; both must come from the same model."
        )
    images, texts = len(image_embeds), len(text_embeds)
    pairs = _pairs(positives, images, texts)  # (p, 2)

    metrics: dict[str, float] = {"candidates": float(images)}
    directions = {
        "image_to_text": (image_embeds, text_embeds, pairs, similarity),
        "text_to_image": (text_embeds, image_embeds, pairs.flip(1), lambda q, c: similarity(c, q).T),
    }
    for direction, (queries, candidates, query_pairs, score) in directions.items():
        ranks = best_ranks(queries, candidates, query_pairs, score, chunk)
        positives_each = torch.bincount(query_pairs[:, 0], minlength=len(queries))
        asked = positives_each > 0
        for name, value in _summary(ranks[asked], positives_each[asked], len(candidates), ks).items():
            metrics[f"{direction}/{name}"] = value
    return metrics


def best_ranks(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    pairs: torch.Tensor,
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    chunk: int,
) -> torch.Tensor:
    """Rank (from 1) of every query's best positive, ties pessimistic: `(q, d), (c, d), (p, 2) -> (q,)` int64.

    Meaningless for a query without a positive. Two passes over blocks of scores: the first finds each query's
    best positive, the second counts the negatives that reach it.
    """
    best = torch.full((len(queries),), -torch.inf)
    ahead = torch.zeros(len(queries), dtype=torch.int64)
    for start in range(0, len(queries), chunk):
        rows = slice(start, min(start + chunk, len(queries)))
        own = pairs[(pairs[:, 0] >= rows.start) & (pairs[:, 0] < rows.stop)]
        blocks = []
        for left in range(0, len(candidates), chunk):
            columns = slice(left, min(left + chunk, len(candidates)))
            inside = own[(own[:, 1] >= columns.start) & (own[:, 1] < columns.stop)]
            blocks.append((columns, inside[:, 0] - rows.start, inside[:, 1] - columns.start))
        for columns, row, column in blocks:
            if len(row):
                scores = score(queries[rows], candidates[columns]).float()
                best[rows].scatter_reduce_(0, row, scores[row, column], "amax")
        threshold = best[rows] - TIE_TOLERANCE * best[rows].abs().clamp(min=1)
        for columns, row, column in blocks:
            scores = score(queries[rows], candidates[columns]).float()  # (<= chunk, <= chunk)
            reaching = scores >= threshold[:, None]
            reaching[row, column] = False
            ahead[rows] += reaching.sum(dim=1)
    return ahead + 1


def chance_recall(positives: int, candidates: int, k: int) -> float:
    """Probability that at least one of `positives` among `candidates` falls in the first k of a random
    order."""
    miss = 1.0
    for drawn in range(min(k, candidates)):
        miss *= max(candidates - positives - drawn, 0) / (candidates - drawn)
    return 1.0 - miss


def _summary(ranks: torch.Tensor, positives_each: torch.Tensor, candidates: int, ks: Sequence[int]) -> dict[str, float]:
    ranks = ranks.double()
    counts = list(zip(*(t.tolist() for t in positives_each.unique(return_counts=True)), strict=True))
    summary = {f"recall@{k}": (ranks <= k).double().mean().item() for k in ks}
    for k in ks:
        summary[f"chance_recall@{k}"] = sum(n * chance_recall(p, candidates, k) for p, n in counts) / len(ranks)
    summary["mean_rank"] = ranks.mean().item()
    summary["median_rank"] = statistics.median(ranks.tolist())
    summary["mrr"] = ranks.reciprocal().mean().item()
    summary["candidates"] = float(candidates)
    summary["queries"] = float(len(ranks))
    return summary


def _checked(embeds: torch.Tensor, what: str) -> torch.Tensor:
    if embeds.ndim != 2:
        raise ClipDomainError(f"{what} embeddings have shape {tuple(embeds.shape)}; expected (rows, dimensions).")
    embeds = embeds.detach().float().cpu()
    bad = ~embeds.isfinite().all(dim=1)
    if bad.any():
        raise ClipDomainError(
            f"{int(bad.sum())} of {len(embeds)} {what} embeddings are not finite (first: row "
            f"{int(bad.nonzero()[0])}); the model has diverged: lower the learning rate or use float32."
        )
    return embeds


def _pairs(positives: Sequence[tuple[int, int]] | torch.Tensor | None, images: int, texts: int) -> torch.Tensor:
    if positives is None:
        if images != texts:
            raise ClipDomainError(
                f"{images} images and {texts} texts without `positives`; give the pairs (image index, text index)."
            )
        positives = torch.arange(images).repeat(2, 1).T
    pairs = torch.as_tensor(positives, dtype=torch.int64).reshape(-1, 2).unique(dim=0)
    if not len(pairs):
        raise ClipDomainError("no positive pair to measure retrieval with; give at least one image with its caption.")
    if int(pairs.min()) < 0 or int(pairs[:, 0].max()) >= images or int(pairs[:, 1].max()) >= texts:
        raise ClipDomainError(f"a positive pair points outside {images} images and {texts} texts.")
    return pairs
