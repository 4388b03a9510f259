"""Rows to one Arrow table of embeddings: every row has its place, and a reason where it has no embedding."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hf_clip_domain.corpus.rows import CorpusRow
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError

DTYPES = {"float32": np.float32, "float16": np.float16}


def embed_shard(
    embedder: ClipEmbedder,
    rows: Iterable[CorpusRow],
    sides: Sequence[str],
    *,
    dtype: str = "float32",
    on_row: Callable[[], Any] = lambda: None,
) -> pa.Table:
    """Embed the rows of one shard, which are read lazily: only the embeddings and texts of a shard are held.

    Args:
        embedder: as any other use of the model has it.
        rows: of the shard.
        sides: which of `"image"` and `"text"` to embed.
        dtype: of the stored numbers, `"float32"` or `"float16"`.
        on_row: called as each row is read.

    Returns:
        Columns `row` (int64), `key`, `split` (string), `image_embeds` and/or `text_embeds` (a list of the model's
        width, null where there is none), `error` (why one is null), in the rows' order.

    Raises:
        ClipDomainError: an embedding is not finite.
    """
    shard = _Shard(embedder, on_row)
    pictures = shard.pictures(rows)
    first = next(pictures, None)  # reads all rows when none has a picture
    vectors = {}
    if first is not None:
        vectors["image"] = embedder.embed_images(chain([first], pictures), progress=False)
    if shard.texts:
        vectors["text"] = embedder.embed_texts(list(shard.texts.values()), progress=False)
    places = {"image": shard.with_picture, "text": list(shard.texts)}
    columns = {
        "row": pa.array([row.number for row in shard.rows], pa.int64()),
        "key": pa.array([row.key for row in shard.rows], pa.string()),
        "split": pa.array([row.split for row in shard.rows], pa.string()),
        **{f"{side}_embeds": _lists(vectors.get(side), places[side], len(shard.rows), DTYPES[dtype]) for side in sides},
        "error": pa.array(["; ".join(errors) or None for errors in shard.errors], pa.string()),
    }
    return pa.table(columns)


class _Shard:
    """What is known of a shard's rows while they pass."""

    def __init__(self, embedder: ClipEmbedder, on_row: Callable[[], Any]) -> None:
        self.embedder, self.on_row = embedder, on_row
        self.rows: list[CorpusRow] = []  # without their pictures
        self.errors: list[list[str]] = []
        self.with_picture: list[int] = []
        self.texts: dict[int, str] = {}

    def pictures(self, rows: Iterable[CorpusRow]) -> Iterator[torch.Tensor]:
        """Pixels `(3, h, w)` of the pictures that can be read, and an entry for every row; threads decode ahead."""
        waiting: deque[Future | None] = deque()
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for row in rows:
                self._add(row)
                waiting.append(pool.submit(self._prepare, row) if row.image is not None else None)
                if len(waiting) > 2 * self.embedder.batch_size:
                    yield from self._outcome(len(self.rows) - len(waiting), waiting.popleft())
            while waiting:
                yield from self._outcome(len(self.rows) - len(waiting), waiting.popleft())

    def _add(self, row: CorpusRow) -> None:
        if row.text is not None:
            self.texts[len(self.rows)] = row.text
        self.rows.append(CorpusRow(row.number, row.key, row.split, None, None))
        self.errors.append(list(row.errors))
        self.on_row()

    def _prepare(self, row: CorpusRow) -> torch.Tensor | str:
        try:
            return self.embedder.pixels(row.number, row.image)
        except ClipDomainError as error:
            return str(error)

    def _outcome(self, place: int, future: Future | None) -> Iterator[torch.Tensor]:
        found = future.result() if future is not None else None
        if isinstance(found, str):
            self.errors[place].append(found)
        elif found is not None:
            self.with_picture.append(place)
            yield found


def _lists(vectors: torch.Tensor | None, places: list[int], rows: int, dtype: type) -> pa.ListArray:
    """A list a row, null where there is no vector; of no fixed size, since nulls among those cannot be read by every
    version of Arrow."""
    found = np.zeros((0, 0), dtype) if vectors is None else vectors.numpy().astype(dtype)
    missing = np.ones(rows, bool)
    missing[places] = False
    offsets = np.concatenate([[0], np.cumsum(~missing) * found.shape[1]]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(found.reshape(-1)), mask=pa.array(missing))
