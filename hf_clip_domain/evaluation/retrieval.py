"""Retrieval in both directions, for data with many captions an image and many images a caption.

- A query's rank is that of its best positive: 1 + the number of negatives that score at least as high.
- Ties are pessimistic: a negative within float noise of the positive ranks ahead of it. A model that gives
  every picture the same embedding therefore scores 0, not 100%.
- Recall@k is the share of queries whose rank is at most k. Other positives never push the best one down.
- Average precision and nDCG@k look at all positives of a query; the j-th of them stands at j + the negatives ahead
  of it (Manning et al. 2008, "Introduction to Information Retrieval", section 8.4; Järvelin and Kekäläinen 2002,
  "Cumulated gain-based evaluation of IR techniques", with gains 0 and 1).
- Chance is the expected recall of a random ranking, exactly: a query with p positives among N candidates is a
  hit in the first k with probability `1 - C(N-p, k) / C(N, k)` (hypergeometric), averaged over the queries.
- A query without a positive is not asked, but stays among the candidates of the other direction.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.ranking import Ahead, negatives_ahead
from hf_clip_domain.similarity import cosine

KS = (1, 5, 10)
NDCG_DEPTH = 10
DIRECTIONS = ("image_to_text", "text_to_image")


def retrieval_metrics(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    positives: Sequence[tuple[int, int]] | torch.Tensor | None = None,
    *,
    similarity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = cosine,
    ks: Sequence[int] = KS,
    chunk: int = 2048,
    progress: bool | None = False,
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
        progress: a bar, see `negatives_ahead`.

    Returns:
        Flat `dict[str, float]`: for each direction (`image_to_text`, `text_to_image`) `recall@k`,
        `chance_recall@k`, `mean_rank`, `median_rank`, `mrr`, `map`, `ndcg@10`, `candidates` and `queries`; and
        `candidates`, the number of images.

    Raises:
        ClipDomainError: an embedding is not finite, the shapes disagree, or there is no positive pair.
    """
    image_embeds, text_embeds, pairs = checked(image_embeds, text_embeds, positives)
    ahead = negatives_ahead(image_embeds, text_embeds, pairs, similarity, chunk, progress)
    return metrics_of(pairs, ahead, len(image_embeds), len(text_embeds), ks)


def metrics_of(pairs: torch.Tensor, ahead: Ahead, images: int, texts: int, ks: Sequence[int] = KS) -> dict[str, float]:
    """The metrics that the counts of `negatives_ahead` amount to; see `retrieval_metrics` for the keys."""
    metrics: dict[str, float] = {"candidates": float(images)}
    for direction, queries, counts, candidates in (
        ("image_to_text", pairs[:, 0], ahead.texts, texts),
        ("text_to_image", pairs[:, 1], ahead.images, images),
    ):
        values = per_query(queries, counts, ks)
        for name, value in summary(values, candidates, ks).items():
            metrics[f"{direction}/{name}"] = value
    return metrics


def per_query(query_of_pair: torch.Tensor, ahead: torch.Tensor, ks: Sequence[int] = KS) -> dict[str, torch.Tensor]:
    """What every asked query scores, float64 `(q,)`, queries in the order of their index.

    Args:
        query_of_pair, ahead `(p,)`: the query of every positive pair, and the negatives ahead of it.

    Returns:
        `query` (index), `positives`, `rank`, `recall@k`, `mrr`, `map` and `ndcg@10` (names of the metrics that they
        average to).
    """
    order = ahead.argsort(stable=True)
    order = order[query_of_pair[order].argsort(stable=True)]  # by query, then by the negatives ahead
    query, inverse, count = query_of_pair[order].unique_consecutive(return_inverse=True, return_counts=True)
    first = count.cumsum(0) - count
    nth = torch.arange(len(order)) - first[inverse] + 1  # 1 for a query's best positive
    position = (nth + ahead[order]).double()

    def added(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(query), dtype=torch.float64).index_add_(0, inverse, values)

    rank = position[first]
    gain = torch.where(position <= NDCG_DEPTH, (1 + position).log2().reciprocal(), 0.0)
    ideal = torch.where(nth <= NDCG_DEPTH, (1 + nth.double()).log2().reciprocal(), 0.0)
    return {
        "query": query,
        "positives": count,
        "rank": rank,
        **{f"recall@{k}": (rank <= k).double() for k in ks},
        "mrr": rank.reciprocal(),
        "map": added(nth / position) / count,
        f"ndcg@{NDCG_DEPTH}": added(gain) / added(ideal),
    }


def summary(
    values: dict[str, torch.Tensor], candidates: int | torch.Tensor, ks: Sequence[int] = KS
) -> dict[str, float]:
    """Averages of what `per_query` returns; `candidates` is one number, or one a query `(q,)`."""
    rank, positives = values["rank"], values["positives"]
    sizes = torch.as_tensor(candidates).expand(len(rank))
    kinds, counts = torch.stack([positives, sizes]).unique(dim=1, return_counts=True)  # (2, kinds)
    kinds = list(zip(*kinds.tolist(), counts.tolist(), strict=True))
    found = {f"recall@{k}": values[f"recall@{k}"].mean().item() for k in ks}
    for k in ks:
        found[f"chance_recall@{k}"] = sum(n * chance_recall(p, size, k) for p, size, n in kinds) / len(rank)
    found["mean_rank"] = rank.mean().item()
    found["median_rank"] = statistics.median(rank.tolist())
    for name in ("mrr", "map", f"ndcg@{NDCG_DEPTH}"):
        found[name] = values[name].mean().item()
    found["candidates"] = sizes.double().mean().item()
    found["queries"] = float(len(rank))
    return found


def chance_recall(positives: int, candidates: int, k: int) -> float:
    """Probability that at least one of `positives` among `candidates` falls in the first k of a random
    order."""
    miss = 1.0
    for drawn in range(min(k, candidates)):
        miss *= max(candidates - positives - drawn, 0) / (candidates - drawn)
    return 1.0 - miss


def checked(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    positives: Sequence[tuple[int, int]] | torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Finite float32 embeddings of one width on the CPU, and the pairs `(p, 2)`, each once.

    Raises:
        ClipDomainError: see `retrieval_metrics`.
    """
    image_embeds, text_embeds = _checked(image_embeds, "image"), _checked(text_embeds, "text")
    if image_embeds.shape[1] != text_embeds.shape[1]:
        raise ClipDomainError(
            f"image embeddings have {image_embeds.shape[1]} dimensions and text embeddings "
            f"{text_embeds.shape[1]}; both must come from the same model."
        )
    return image_embeds, text_embeds, _pairs(positives, len(image_embeds), len(text_embeds))


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
