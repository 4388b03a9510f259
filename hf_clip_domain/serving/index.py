"""Nearest pictures by FAISS: exact, and of one model's embeddings."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from hf_clip_domain._optional import require
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.model import TEXT, LoadedModel
from hf_clip_domain.similarity import euclidean


class Index:
    """Rows by number, searched by the model's own similarity; safe in several threads.

    Exact search, since a gallery of a million is still answered in a fraction of a second, and rows can be removed.

    Raises:
        ClipDomainError: the model's similarity is none that an index knows.
    """

    def __init__(self, model: LoadedModel) -> None:
        faiss = require("faiss", extra="serve")
        similarity = model.embedder.similarity_function
        self._matrix = None
        if similarity is not euclidean:
            self._matrix = _form(model)
        self._distance = similarity is euclidean
        flat = faiss.IndexFlatL2(model.dimensions) if self._distance else faiss.IndexFlatIP(model.dimensions)
        self._index = faiss.IndexIDMap2(flat)
        self._lock = threading.Lock()
        self.numbers: set[int] = set()

    def add(self, numbers: Sequence[int], rows: np.ndarray) -> None:
        """Rows `(n, d)` float32 under numbers of their own."""
        with self._lock:
            self._index.add_with_ids(np.ascontiguousarray(rows, dtype=np.float32), np.array(numbers, dtype=np.int64))
            self.numbers.update(numbers)

    def remove(self, numbers: Sequence[int]) -> None:
        """Rows by number."""
        with self._lock:
            self._index.remove_ids(np.array(numbers, dtype=np.int64))
            self.numbers.difference_update(numbers)

    def search(self, query: np.ndarray, k: int, kind: str) -> list[tuple[int, float]]:
        """Numbers and similarities of the `k` pictures most like a query `(d,)`, the best first.

        A learned similarity stands between a text and a picture; between two pictures the cosine does.
        """
        if self._matrix is not None and kind == TEXT:
            query = self._matrix @ query
        with self._lock:
            scores, numbers = self._index.search(np.ascontiguousarray(query[None], dtype=np.float32), k)
        scores = -scores if self._distance else scores
        return [(int(n), float(score)) for n, score in zip(numbers[0], scores[0], strict=True) if n >= 0]


def _form(model: LoadedModel) -> np.ndarray | None:
    """`W` of a similarity `x^T W y`, as cosine, dot and every learned bilinear one are; `None` for the identity."""
    similarity, width = model.embedder.similarity_function, model.dimensions
    matrix = similarity(torch.eye(width), torch.eye(width))  # (d, d)
    probes = torch.randn(2, 8, width, generator=torch.Generator().manual_seed(0))
    probes = F.normalize(probes, dim=-1) if model.normalised else probes
    found, formed = similarity(*probes), probes[0] @ matrix @ probes[1].T
    if not torch.allclose(found, formed, rtol=1e-3, atol=1e-4 * float(formed.abs().max())):
        raise ClipDomainError(
            "--gallery needs a similarity that an index can search by: cosine, dot, euclidean or a bilinear one."
        )
    return None if torch.equal(matrix, torch.eye(width)) else matrix.cpu().numpy()


def embed_in_batches(model: LoadedModel, pixels: Sequence[torch.Tensor]) -> np.ndarray:
    """Prepared pictures to `(n, d)`, outside the engine."""
    return np.concatenate([model.encode_images(pixels[at : at + 16]) for at in range(0, len(pixels), 16)])
