"""Pairs embedded once, and their retrieval: what every other measurement starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.evaluation.bootstrap import REPLICATES, clusters, mean_replicates, median_replicates
from hf_clip_domain.evaluation.by_label import mean_average_precision
from hf_clip_domain.evaluation.measurement import Measurement
from hf_clip_domain.evaluation.ranking import Ahead, negatives_ahead
from hf_clip_domain.evaluation.retrieval import checked, metrics_of, per_query


@dataclass(frozen=True)
class EmbeddedPairs:
    """Different pictures and different captions of a data set with their embeddings.

    Attributes:
        embedder: the model that embedded them.
        pairs: the rows they come from, by position.
        rows: for every picture its first row.
        texts: the captions, as written.
        positives `(p, 2)`: (picture, caption) that belong together.
        image_embeds `(n, d)`, text_embeds `(m, d)`.
        image_labels, text_labels: a label each (a caption's is that of its first row); `None` where rows lack one.
        image_groups, text_groups: likewise the groups.
        progress: as for `negatives_ahead`.
    """

    embedder: ClipEmbedder
    pairs: Sequence[dict[str, Any]]
    rows: list[int]
    texts: list[str]
    positives: torch.Tensor
    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
    image_labels: list[str] | None = None
    text_labels: list[str] | None = None
    image_groups: list[str] | None = None
    text_groups: list[str] | None = None
    progress: bool | None = False

    @cached_property
    def ahead(self) -> Ahead:
        """The negatives ahead of every positive pair."""
        images, texts, positives = checked(self.image_embeds, self.text_embeds, self.positives)
        return negatives_ahead(images, texts, positives, self.embedder.similarity_function, progress=self.progress)

    @cached_property
    def image_clusters(self) -> np.ndarray:
        """The independent cluster of every picture `(n,)`, see `text_clusters`."""
        return self._clusters[0]

    @cached_property
    def text_clusters(self) -> np.ndarray:
        """The independent cluster of every caption `(m,)`: pictures that share a caption, captions that share a
        picture, and all of a group (a patient, a part) belong together."""
        return self._clusters[1]

    @cached_property
    def _clusters(self) -> list[np.ndarray]:
        images, texts = self.positives[:, 0].numpy(), self.positives[:, 1].numpy()
        links, sizes = [(images, texts)], [len(self.rows), len(self.texts)]
        if self.image_groups is not None:
            names, number = np.unique(np.asarray(self.image_groups, dtype=str), return_inverse=True)
            links.append((np.arange(len(self.rows)), number))
            sizes.append(len(names))
        return clusters(links, sizes)


def measure_retrieval(embedded: EmbeddedPairs, replicates: int = REPLICATES) -> Measurement:
    """Retrieval both ways with every metric's replicates (none for `replicates=0`); keys as `retrieval_metrics`, and
    `map_by_label` where there are labels."""
    metrics = metrics_of(embedded.positives, embedded.ahead, len(embedded.rows), len(embedded.texts))
    if embedded.image_labels is not None:
        metrics |= _by_label(embedded)
    found = Measurement(metrics)
    if not replicates:
        return found
    for direction, queries, ahead, cluster in (
        ("image_to_text", embedded.positives[:, 0], embedded.ahead.texts, embedded.image_clusters),
        ("text_to_image", embedded.positives[:, 1], embedded.ahead.images, embedded.text_clusters),
    ):
        replicated = retrieval_replicates(per_query(queries, ahead), cluster, replicates)
        found.replicates.update({f"{direction}/{name}": value for name, value in replicated.items()})
    found.clusters[""] = len(np.unique(embedded.image_clusters))
    return found


def retrieval_replicates(
    values: dict[str, torch.Tensor], cluster: np.ndarray, replicates: int
) -> dict[str, np.ndarray]:
    """The replicates of what `summary` reports, from the scores of `per_query`; `cluster` is by query index."""
    own = cluster[values["query"].numpy()]
    means = {name: column.numpy() for name, column in values.items() if name not in ("query", "positives", "rank")}
    found = mean_replicates(means | {"mean_rank": values["rank"].numpy()}, own, replicates)
    median = median_replicates(values["rank"].numpy(), own, replicates)
    return found if median is None else found | {"median_rank": median}


def _by_label(embedded: EmbeddedPairs) -> dict[str, float]:
    images, texts, compare = embedded.image_labels, embedded.text_labels, embedded.embedder.similarity_function
    image_embeds, text_embeds = embedded.image_embeds, embedded.text_embeds
    return {
        "image_to_text/map_by_label": mean_average_precision(
            image_embeds, text_embeds, images, texts, similarity=compare
        ),
        "text_to_image/map_by_label": mean_average_precision(
            text_embeds, image_embeds, texts, images, similarity=lambda text, image: compare(image, text).T
        ),
    }
