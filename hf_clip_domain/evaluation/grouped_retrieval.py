"""Retrieval within a group, where all candidates are near misses, and across groups, where none is."""

from __future__ import annotations

import numpy as np
import torch

from hf_clip_domain.domains.metrics import Within
from hf_clip_domain.evaluation.embedded import EmbeddedPairs, retrieval_replicates
from hf_clip_domain.evaluation.measurement import Measurement, joined
from hf_clip_domain.evaluation.ranking import negatives_ahead
from hf_clip_domain.evaluation.retrieval import per_query, summary


def measure_within(embedded: EmbeddedPairs, metric: Within, _classified, replicates: int) -> Measurement:
    """Groups `within_<column>` and `across_<column>`, with the keys of `retrieval_metrics` and their chance.

    A caption belongs to the group of its first row. Asked are pictures and captions whose group has at least two
    pictures; within, the candidates are those of the group; across, the right ones and those of all other groups.
    """
    image_of, text_of = {
        "group": (embedded.image_groups, embedded.text_groups),
        "label": (embedded.image_labels, embedded.text_labels),
    }[metric.column]
    names = (f"within_{metric.column}", f"across_{metric.column}")
    if image_of is None:
        return Measurement(skipped={names[0]: f"the pairs have no {metric.column} in every row"})
    kinds, numbers = np.unique(np.asarray([*image_of, *text_of], dtype=str), return_inverse=True)
    image_group, text_group = map(torch.from_numpy, (numbers[: len(image_of)], numbers[len(image_of) :]))
    sizes = torch.bincount(image_group, minlength=len(kinds))
    pairs = embedded.positives
    own = image_group[pairs[:, 0]]
    asked = (own == text_group[pairs[:, 1]]) & (sizes[own] >= 2)
    if not asked.any() or len(own[asked].unique()) < 2:
        return Measurement(skipped={names[0]: f"no two {metric.column}s of the pairs have several pictures each"})

    within = torch.zeros(len(pairs), 2, dtype=torch.int64)  # negatives ahead among texts, among images
    for group in own[asked].unique():
        inside = (asked & (own == group)).nonzero()[:, 0]
        images, texts = (image_group == group).nonzero()[:, 0], (text_group == group).nonzero()[:, 0]
        local = torch.stack(
            [torch.searchsorted(images, pairs[inside, 0]), torch.searchsorted(texts, pairs[inside, 1])], dim=1
        )
        ahead = negatives_ahead(
            embedded.image_embeds[images], embedded.text_embeds[texts], local, embedded.embedder.similarity_function
        )
        within[inside] = torch.stack([ahead.texts, ahead.images], dim=1)

    texts_in = torch.bincount(text_group, minlength=len(kinds))
    parts = []
    for side, (direction, total, all_of_them, inside_counts, group_of, cluster) in enumerate(
        (
            (
                "image_to_text",
                embedded.ahead.texts,
                len(embedded.texts),
                texts_in,
                image_group,
                embedded.image_clusters,
            ),
            ("text_to_image", embedded.ahead.images, len(embedded.rows), sizes, text_group, embedded.text_clusters),
        )
    ):
        queries = pairs[asked, side]
        # Rounding may let a near tie fall differently in a block of another size.
        outside = (total - within[:, side]).clamp(min=0)
        for name, counts in zip(names, (within[:, side], outside), strict=True):
            values = per_query(queries, counts[asked])
            candidates = inside_counts[group_of[values["query"]]]
            if name == names[1]:
                candidates = all_of_them - candidates + values["positives"]
            found = Measurement(summary(values, candidates))
            if replicates:
                found.replicates.update(retrieval_replicates(values, cluster, replicates))
            parts.append(found.prefixed(f"{name}/{direction}"))
    return joined(parts)
