"""How many wrong candidates stand ahead of every right one, in both directions, from one pass over blocks of scores.

Everything that retrieval reports (recall, reciprocal rank, average precision, nDCG) follows from these counts. No
more than a block of scores is held, and each score is computed once for both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

# Two scores this close (relative to their size, at least 1) differ by float32 rounding, not by knowledge.
TIE_TOLERANCE = 1e-6
# Up to this many right answers a query are counted one comparison each; more are looked up in sorted scores.
COMPARED = 4
_PAIRS_AT_ONCE = 64


class Ahead(NamedTuple):
    """For every positive pair `(p,)` int64: the negatives that reach its score, among the texts and the images."""

    texts: torch.Tensor
    images: torch.Tensor


class Strongest(NamedTuple):
    """The wrong candidate of the highest score, for every query `(q,)`: its index, and the score.

    Where every candidate is right the score is minus infinity.
    """

    index: torch.Tensor
    score: torch.Tensor


def negatives_ahead(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    pairs: torch.Tensor,
    similarity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    chunk: int = 2048,
    progress: bool | None = False,
) -> Ahead:
    """Count, for every positive pair, the candidates ahead of it that are not right themselves.

    Ties are pessimistic: a negative within float noise of the positive counts as ahead.

    Args:
        image_embeds `(n, d)`, text_embeds `(m, d)`: float32 on the CPU.
        pairs `(p, 2)`: (image index, text index), each once.
        similarity: `(a, d), (b, d) -> (a, b)`, images first, larger is more alike.
        chunk: at most `chunk * chunk` scores are held.
        progress: a bar on standard error; `None` shows it only when counting takes longer than two seconds.
    """
    limits = own_scores(image_embeds, text_embeds, pairs, similarity)
    limits = limits - TIE_TOLERANCE * limits.abs().clamp(min=1)
    images, texts = len(image_embeds), len(text_embeds)
    by_image, by_text = _Limits(pairs[:, 0], limits, images), _Limits(pairs[:, 1], limits, texts)
    for rows, columns, scores in _negatives(image_embeds, text_embeds, pairs, similarity, chunk, progress):
        by_image.count(rows, scores)
        by_text.count(columns, scores.T)
    return Ahead(by_image.result(), by_text.result())


def strongest_negatives(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    pairs: torch.Tensor,
    similarity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    chunk: int = 2048,
    progress: bool | None = False,
) -> tuple[Strongest, Strongest]:
    """The wrong text that every image prefers, and the wrong image that every text prefers.

    Arguments as for `negatives_ahead`.
    """
    found = tuple(
        Strongest(torch.zeros(count, dtype=torch.int64), torch.full((count,), -torch.inf))
        for count in (len(image_embeds), len(text_embeds))
    )
    for rows, columns, scores in _negatives(image_embeds, text_embeds, pairs, similarity, chunk, progress):
        for best, own, other, block in ((found[0], rows, columns, scores), (found[1], columns, rows, scores.T)):
            score, place = block.max(dim=1)
            better = score > best.score[own]
            best.index[own] = torch.where(better, place + other.start, best.index[own])
            best.score[own] = torch.where(better, score, best.score[own])
    return found


def _negatives(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    pairs: torch.Tensor,
    similarity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    chunk: int,
    progress: bool | None,
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Blocks of scores: images, texts, and their scores with minus infinity for what is right."""
    images, texts = len(image_embeds), len(text_embeds)
    order = pairs[:, 0].argsort(stable=True)
    sorted_pairs = pairs[order]  # by image, so that a row of blocks finds its own
    bar = tqdm(total=images, desc="ranking", unit="image", delay=2, leave=False, disable=progress is False)
    with bar, torch.no_grad():
        for top in range(0, images, chunk):
            rows = slice(top, min(top + chunk, images))
            first, last = torch.searchsorted(sorted_pairs[:, 0].contiguous(), torch.tensor([rows.start, rows.stop]))
            own = sorted_pairs[first:last]
            for left in range(0, texts, chunk):
                columns = slice(left, min(left + chunk, texts))
                scores = similarity(image_embeds[rows], text_embeds[columns]).float()  # (<= chunk, <= chunk)
                inside = own[(own[:, 1] >= columns.start) & (own[:, 1] < columns.stop)]
                scores[inside[:, 0] - rows.start, inside[:, 1] - columns.start] = -torch.inf
                yield rows, columns, scores
            bar.update(rows.stop - rows.start)


class _Limits:
    """The scores that a negative has to reach, by query, and the count of those that did.

    Kept flat, sorted by query. A block of queries is laid out as a table `(queries, most)`, `most` being the largest
    number of positives of one of them; where a query has fewer, infinity stands, which nothing reaches.
    """

    def __init__(self, query_of_pair: torch.Tensor, limits: torch.Tensor, queries: int) -> None:
        self.order = query_of_pair.argsort(stable=True)
        self.query, self.limits = query_of_pair[self.order], limits[self.order]
        self.ahead = torch.zeros(len(limits), dtype=torch.int64)
        counts = torch.bincount(query_of_pair, minlength=queries)
        self.starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        self.place = torch.arange(len(limits)) - self.starts[self.query]

    def count(self, rows: slice, scores: torch.Tensor) -> None:
        """Add the scores `(rows, candidates)` of negatives; those of positives are minus infinity."""
        flat = slice(int(self.starts[rows.start]), int(self.starts[rows.stop]))
        if flat.start == flat.stop:
            return
        row, place = self.query[flat] - rows.start, self.place[flat]
        most = int(place.max()) + 1
        limits = torch.full((len(scores), most), torch.inf)
        limits[row, place] = self.limits[flat]
        if most <= COMPARED:
            reached = [(scores >= limits[:, column, None]).sum(dim=1, dtype=torch.int32) for column in range(most)]
            ahead = torch.stack(reached, dim=1)  # (rows, most)
        else:
            ordered = scores.sort(dim=1).values.contiguous()
            ahead = ordered.shape[1] - torch.searchsorted(ordered, limits, out_int32=True)
        self.ahead[flat] += ahead[row, place]

    def result(self) -> torch.Tensor:
        """In the order of the pairs."""
        return torch.empty_like(self.ahead).index_copy_(0, self.order, self.ahead)


def own_scores(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    pairs: torch.Tensor,
    similarity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The score of every pair `(p,)`: diagonals of small blocks, since a similarity compares all with all."""
    scores = [
        similarity(image_embeds[part[:, 0]], text_embeds[part[:, 1]]).float().diagonal()
        for part in pairs.split(_PAIRS_AT_ONCE)
    ]
    return torch.cat(scores).detach()
