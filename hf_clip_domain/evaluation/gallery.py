"""Single pairs that tell more than a mean: the best found, the worst found, and the most surely confused.

Picked from the ranks and one more pass over blocks of scores, so that a hundred thousand candidates need no table of
all with all. What is picked is plain data for the report; the pictures come in only where a page is made.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image

from hf_clip_domain.data.images import decode_image
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.embedded import EmbeddedPairs
from hf_clip_domain.evaluation.ranking import Ahead, own_scores, strongest_negatives
from hf_clip_domain.evaluation.retrieval import DIRECTIONS, checked

KINDS = ("best", "worst", "confused")
CAPTION = 300  # characters of a caption that are kept
SIDE = 160  # pixels of a thumbnail's longer side
_BYTES = 9_000  # of a thumbnail; noise gets there at a low quality only


@dataclass(frozen=True)
class Case:
    """A query, its best right answer, and the wrong candidate that scored highest.

    Attributes:
        kind: `best`: right and first, by the largest lead over the wrong one. `worst`: by the rank of the right answer.
            `confused`: by the lead of the wrong one.
        direction: `image_to_text` asks with the picture and answers with the caption; `text_to_image` the reverse.
        row, text, score: the pair's picture (row of the data), its caption, and the similarity of the two.
        rank: of the right answer among `candidates`; `rank_before` that of the earlier model.
        other_row, other_text, other_score: the wrong candidate and one that belongs to it (a caption and its picture),
            and its similarity to the query.
    """

    kind: str
    direction: str
    row: int
    text: str
    score: float
    rank: int
    rank_before: int | None
    candidates: int
    other_row: int
    other_text: str
    other_score: float


def find_cases(embedded: EmbeddedPairs, before: Ahead | None = None, count: int = 6) -> list[Case]:
    """At most `count` cases of each kind and direction, best first and worst first.

    Within a kind no right answer and no wrong one is shown twice. A query stands under one kind only.

    Args:
        before: of another model on the same pairs, for its ranks.
    """
    images, texts, pairs = checked(embedded.image_embeds, embedded.text_embeds, embedded.positives)
    compare = embedded.embedder.similarity_function
    scores = own_scores(images, texts, pairs, compare)
    strongest = strongest_negatives(images, texts, pairs, compare, progress=embedded.progress)
    found = []
    for side, direction in enumerate(DIRECTIONS):
        query = pairs[:, side]
        ahead = embedded.ahead[side]
        own = _best_of_each(query, scores)
        asked = query[own]
        lead = scores[own] - strongest[side].score[asked]
        ranks = 1 + ahead[own]
        earlier = 1 + before[side][_best_of_each(query, -before[side])] if before is not None else None
        wrong = strongest[side].index[asked]
        partner = _partners(pairs, 1 - side, len(texts if side == 0 else images))
        for kind, place in _picked(ranks, lead, pairs[own, 1 - side], wrong, count):
            pair, other = pairs[own[place]].tolist(), int(wrong[place])
            other_pair = (partner[other], other) if side == 0 else (other, partner[other])
            found.append(
                Case(
                    kind=kind,
                    direction=direction,
                    row=embedded.rows[pair[0]],
                    text=shortened(embedded.texts[pair[1]]),
                    score=float(scores[own[place]]),
                    rank=int(ranks[place]),
                    rank_before=None if earlier is None else int(earlier[place]),
                    candidates=len(texts if side == 0 else images),
                    other_row=embedded.rows[other_pair[0]],
                    other_text=shortened(embedded.texts[other_pair[1]]),
                    other_score=float(strongest[side].score[asked[place]]),
                )
            )
    return found


def to_json(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """For `EvaluationReport.extra["gallery"]`."""
    return [asdict(case) for case in cases]


def shortened(text: str, length: int = CAPTION) -> str:
    """In one line, cut with an ellipsis."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


class Thumbnails:
    """Small JPEG pictures of rows as data for a page; each is made once.

    >>> Thumbnails(pairs)(0)
    'data:image/jpeg;base64,...'
    """

    def __init__(self, pairs: Sequence[dict[str, Any]], side: int = SIDE) -> None:
        self.pairs, self.side = pairs, side
        self._made: dict[int, str | None] = {}

    def __call__(self, row: int) -> str | None:
        """The picture of a row; nothing where it can no longer be read."""
        if row not in self._made:
            self._made[row] = self._make(row)
        return self._made[row]

    def _make(self, row: int) -> str | None:
        try:
            picture = decode_image(self.pairs[row]["image"], draft_size=self.side)
        except (ClipDomainError, OSError):
            return None
        picture.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
        for quality in (80, 60, 40, 20):
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality, optimize=True)
            if buffer.tell() <= _BYTES:
                break
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _best_of_each(query: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """Of the pairs of every query the one with the highest score, in the order of the queries: `(q,)` places."""
    order = score.argsort(descending=True, stable=True)
    order = order[query[order].argsort(stable=True)]
    _, count = query[order].unique_consecutive(return_counts=True)
    return order[count.cumsum(0) - count]


def _partners(pairs: torch.Tensor, side: int, count: int) -> list[int]:
    """For every item of a side one that belongs to it on the other; items without a pair get the first."""
    partner = torch.zeros(count, dtype=torch.int64)
    own = _best_of_each(pairs[:, side], -torch.arange(len(pairs)))
    partner[pairs[own, side]] = pairs[own, 1 - side]
    return partner.tolist()


def _picked(ranks: torch.Tensor, lead: torch.Tensor, right: torch.Tensor, wrong: torch.Tensor, count: int):
    """`(kind, place among the queries)` of what is shown."""
    there = lead.isfinite()  # infinite where every candidate is right
    by_lead = lead.argsort(descending=True, stable=True)
    by_rank = by_lead.flip(0)
    by_rank = by_rank[ranks[by_rank].argsort(descending=True, stable=True)]
    orders = (
        ("best", by_lead[(ranks[by_lead] == 1) & there[by_lead]]),
        ("worst", by_rank[(ranks[by_rank] > 1) & there[by_rank]]),
        ("confused", by_lead.flip(0)[(ranks > 1)[by_lead.flip(0)] & there[by_lead.flip(0)]]),
    )
    taken: set[int] = set()
    for kind, order in orders:
        rights, wrongs, shown = set(), set(), 0
        for place in order.tolist():
            if shown == count:
                break
            ends = int(right[place]), int(wrong[place])
            if place in taken or ends[0] in rights or ends[1] in wrongs:
                continue
            rights.add(ends[0])
            wrongs.add(ends[1])
            taken.add(place)
            shown += 1
            yield kind, place
