"""Retrieval on a set of pairs, for a model in training or a finished one, on one process or many."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from hf_clip_domain.data.text import clean_caption
from hf_clip_domain.domains import Domain
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.embedded import EmbeddedPairs, measure_retrieval
from hf_clip_domain.similarity import SimilarityFunction


class RetrievalEvaluator:
    """Measures image-text retrieval; call it with a model.

    Equal captions (after the domain's cleaning) count as one candidate, and every picture that carries one is
    right for it; likewise a picture that comes in several rows, one a caption, is one candidate. Under
    `torch.distributed` each process embeds its share of pictures and texts, and all return the same metrics.
    No random number is drawn, so training goes the same way with and without evaluation.

    Args:
        pairs: rows with `image` and `text` (a list of captions, or one), by position: a `Dataset`, or a list.
        processor: the model's processor.
        domain: how pictures and texts are prepared, see `ClipEmbedder`.
        batch_size: pictures or texts a forward pass.
        name: prefix of the metrics, `"name/..."`.
        similarity: by which candidates are ranked, see `build_similarity`.
        progress: allow a progress bar (shown when embedding takes longer than two seconds).

    Raises:
        ClipDomainError: rows that cannot be had by position (a stream), or none.
    """

    def __init__(
        self,
        pairs: Sequence[dict[str, Any]],
        processor: Any,
        *,
        domain: Domain | None = None,
        batch_size: int = 64,
        name: str = "",
        similarity: str | SimilarityFunction = "cosine",
        progress: bool = True,
    ) -> None:
        if not hasattr(pairs, "__len__") or not hasattr(pairs, "__getitem__"):
            raise ClipDomainError(
                f"retrieval needs rows by position; got a {type(pairs).__name__}. "
                "For a stream, take a fixed number of rows: list(stream.take(1000))."
            )
        if len(pairs) == 0:
            raise ClipDomainError("retrieval needs at least one pair to evaluate; got none.")
        self.pairs = pairs
        self.processor = processor
        self.domain = domain
        self.batch_size = batch_size
        self.name = name
        self.similarity = similarity
        self.progress = progress
        clean = (lambda text: clean_caption(text, domain)) if domain is not None else str
        self.texts, captions = unique_texts(_column(pairs, "text"), clean)
        self.rows, image_of_row = unique_images(_Images(pairs, range(len(pairs))))
        self.positives = [(image_of_row[row], text) for row, text in captions]
        self.image_labels, self.text_labels = _ids(pairs, "label", self.rows, captions)
        self.image_groups, self.text_groups = _ids(pairs, "group", self.rows, captions)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Embed everything and rank: see `retrieval_metrics` for the keys, and `mean_average_precision` for
        `map_by_label`, which data with labels has besides.

        Raises:
            ClipDomainError: a picture cannot be read or an embedding is not finite, on whichever process.
        """
        return measure_retrieval(self.embed(model), replicates=0).prefixed(self.name).metrics

    def embed(self, model: nn.Module) -> EmbeddedPairs:
        """Embed every picture and caption once, for all that is to be measured; errors as for a call."""
        embedder = ClipEmbedder(
            model, self.processor, domain=self.domain, batch_size=self.batch_size, similarity=self.similarity
        )
        rank, world = _place()
        progress = None if self.progress and rank == 0 else False

        def embed_images(rows: range) -> torch.Tensor:
            return embedder.embed_images(_Images(self.pairs, self.rows[rows.start : rows.stop]), progress=progress)

        def embed_texts(rows: range) -> torch.Tensor:
            return embedder.embed_texts([self.texts[row] for row in rows], progress=progress)

        return EmbeddedPairs(
            embedder=embedder,
            pairs=self.pairs,
            rows=self.rows,
            texts=self.texts,
            positives=torch.tensor(self.positives, dtype=torch.int64).unique(dim=0),
            image_embeds=_sharded(embed_images, len(self.rows), rank, world),
            text_embeds=_sharded(embed_texts, len(self.texts), rank, world),
            image_labels=self.image_labels,
            text_labels=self.text_labels,
            image_groups=self.image_groups,
            text_groups=self.text_groups,
            progress=progress,
        )


def unique_texts(
    captions: Sequence[str | Sequence[str]], clean: Callable[[str], str] = str
) -> tuple[list[str], list[tuple[int, int]]]:
    """Merge captions that `clean` makes equal: the texts in order of appearance, and `(row, text)` for every
    caption.

    Raises:
        ClipDomainError: a row has no caption.
    """
    index: dict[str, int] = {}
    texts: list[str] = []
    positives = []
    for row, own in enumerate(captions):
        own = [own] if isinstance(own, str) else list(own or ())
        if not own:
            raise ClipDomainError(f"row {row} has no caption; every evaluated picture needs at least one text.")
        for text in own:
            position = index.setdefault(clean(text), len(index))
            if position == len(texts):
                texts.append(text)
            positives.append((row, position))
    return texts, positives


def unique_images(images: Iterable[Any]) -> tuple[list[int], list[int]]:
    """Merge pictures with the same file or bytes: the first row of each, and for every row its picture's
    position.

    Without this, a data set with one row a caption would hold each picture several times, and a caption's
    right picture would tie with copies of itself that count as wrong.
    """
    index: dict[Any, int] = {}
    rows, image_of_row = [], []
    for row, image in enumerate(images):
        position = index.setdefault(_identity(image), len(index))
        if position == len(rows):
            rows.append(row)
        image_of_row.append(position)
    return rows, image_of_row


def _identity(image: Any) -> Any:
    """What two rows with the same picture have in common."""
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return hashlib.blake2b(image, digest_size=16).digest()
    if hasattr(image, "tobytes"):  # a PIL image or an array
        pixels = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        return pixels, getattr(image, "size", None), getattr(image, "mode", None)
    return str(image)


def _ids(
    pairs: Sequence[dict[str, Any]], name: str, rows: list[int], captions: list[tuple[int, int]]
) -> tuple[list[str] | None, list[str] | None]:
    """A column's values for the pictures and the texts (each from its first row), or nothing where rows lack one."""
    columns = pairs.column_names if hasattr(pairs, "column_names") else pairs[0]
    values = _column(pairs, name) if name in columns else [None]
    if any(value is None for value in values):
        return None, None
    values = list(values)
    first: dict[int, int] = {}
    for row, text in captions:
        first.setdefault(text, row)
    return [values[row] for row in rows], [values[first[text]] for text in range(len(first))]


class _Images:
    """The pictures of some rows, read one at a time."""

    def __init__(self, pairs: Sequence[dict[str, Any]], rows: Sequence[int]) -> None:
        self.pairs, self.rows = pairs, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        return (self.pairs[row]["image"] for row in self.rows)


def _column(pairs: Sequence[dict[str, Any]], name: str) -> Sequence[Any]:
    # A dataset's column is read without touching the pictures.
    if hasattr(pairs, "column_names"):
        if name not in pairs.column_names:
            raise ClipDomainError(f'no column "{name}" to evaluate; the columns are {", ".join(pairs.column_names)}.')
        return pairs[name]
    return [pairs[row][name] for row in range(len(pairs))]


def _place() -> tuple[int, int]:
    """Rank and number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _sharded(embed: Callable[[range], torch.Tensor], rows: int, rank: int, world: int) -> torch.Tensor:
    """Embed this process's contiguous share and gather all shares in order: `(rows, d)` on every process.

    A failure travels with the gather and is raised everywhere, so no process is left waiting for another.
    """
    if world == 1:
        return embed(range(rows))
    share: torch.Tensor | ClipDomainError | None = None
    mine = range(rows * rank // world, rows * (rank + 1) // world)
    try:
        share = embed(mine) if mine else None
    except ClipDomainError as error:
        share = error
    shares: list[Any] = [None] * world
    dist.all_gather_object(shares, share)
    for found in shares:
        if isinstance(found, ClipDomainError):
            raise found
    return torch.cat([found for found in shares if found is not None])
