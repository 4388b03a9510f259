"""Mean average precision by label: whether what is found is of the right kind, not only the very pair."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch

from hf_clip_domain.evaluation.ranking import TIE_TOLERANCE
from hf_clip_domain.similarity import cosine

_SCORES = 2_000_000


def mean_average_precision(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    query_labels: Sequence[Hashable],
    candidate_labels: Sequence[Hashable],
    *,
    similarity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = cosine,
    chunk: int | None = None,
) -> float:
    """Mean over the queries of the average precision of their ranking; every candidate of the same label is right.

    Average precision is the mean, over the right candidates, of the share of right ones up to each (Manning et al.
    2008, "Introduction to Information Retrieval", section 8.4). Ties are pessimistic, as in `retrieval_metrics`. A query
    whose label no candidate has is not asked.

    Args:
        queries `(q, d)`, candidates `(c, d)`: embeddings.
        similarity: `(a, d), (b, d) -> (a, b)`, queries first.
        chunk: at most `chunk * c` scores are held at a time; by default about two million.

    Returns:
        From 0 to 1; NaN when no query can be asked.
    """
    chunk = chunk or max(1, _SCORES // len(candidates))
    numbers: dict[Hashable, int] = {}
    wanted, there = (
        torch.tensor([numbers.setdefault(label, len(numbers)) for label in labels])
        for labels in (query_labels, candidate_labels)
    )
    precisions = []
    for start in range(0, len(queries), chunk):
        scores = similarity(queries[start : start + chunk], candidates).double()
        right = wanted[start : start + chunk, None] == there  # (b, c)
        # A right candidate yields to a wrong one within float noise of it.
        scores = scores - right * TIE_TOLERANCE * scores.abs().clamp(min=1)
        order = scores.argsort(dim=1, descending=True)
        hits = right.gather(1, order).double()
        share = hits.cumsum(dim=1) / torch.arange(1, len(candidates) + 1)
        count = hits.sum(dim=1)
        precisions.append(((share * hits).sum(dim=1) / count.clamp(min=1))[count > 0])
    joined = torch.cat(precisions)
    return joined.mean().item() if len(joined) else float("nan")
