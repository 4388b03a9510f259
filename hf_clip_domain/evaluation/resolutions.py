"""A model scored and timed at several picture sizes.

Texts are embedded once; at every size only the table of positions differs (see `at_image_size`). Cost is that of the
vision tower alone, without decoding: sizes take turns, so that a machine that is busy for a while slows all alike.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hf_clip_domain import memory
from hf_clip_domain.domains import Domain
from hf_clip_domain.embedder import ClipEmbedder, inference, unwrap
from hf_clip_domain.evaluation.bootstrap import REPLICATES, interval
from hf_clip_domain.evaluation.embedded import EmbeddedPairs, measure_retrieval
from hf_clip_domain.evaluation.forgetting import mean_recall
from hf_clip_domain.evaluation.resolution_table import AtSize, Resolutions, area
from hf_clip_domain.evaluation.retrieval import DIRECTIONS
from hf_clip_domain.models.image_positions import at_image_size, find_image_positions
from hf_clip_domain.models.image_sizes import image_settings, whole_patches

BUDGET = 1.0  # percentage points of mean Recall@10
ROUNDS = 5
PASSES = 2 + ROUNDS  # that are run of a size at most, in batches and of one picture
SECONDS = 20.0  # no further round of timing begins after so long


def measure_resolutions(
    embedded: EmbeddedPairs,
    model: nn.Module,
    processor: Any,
    domain: Domain,
    sizes: Sequence[int],
    *,
    batch_size: int = 64,
    timed_batch: int | None = None,
    budget: float = BUDGET,
    replicates: int = REPLICATES,
) -> Resolutions:
    """Score and time a model at several picture sizes.

    Args:
        embedded: the pairs as the model embeds them at its own size, from `RetrievalEvaluator.embed`.
        sizes: in pixels, see `whole_patches`.
        batch_size: pictures a forward pass; timed_batch: where speed and memory are measured, if another.
        budget: percentage points of mean Recall@10 that the recommended size may lose.

    Raises:
        ClipDomainError: positions of a kind that cannot be interpolated.
    """
    model = unwrap(model)
    native, timed_batch = image_settings(processor)[0], timed_batch or batch_size
    device = next(model.parameters()).device
    name = next((name for name in domain.metrics if isinstance(name, str)), "text_to_image/recall@10")
    models, scores, drawn = {}, {}, {}
    for size in whole_patches(model, sizes):
        models[size], own = at_image_size(model, processor, size)
        pairs = embedded if size == native else _at(embedded, models[size], own, domain, batch_size)
        measured = measure_retrieval(pairs, replicates)
        scores[size] = mean_recall(measured.metrics), measured.metrics.get(name, math.nan)
        # Both directions resample the same clusters by the same draws, so their mean is a replicate of the mean.
        both = [measured.replicates.get(f"{direction}/recall@10") for direction in DIRECTIONS]
        drawn[size] = None if any(one is None for one in both) else sum(both) / 2
    seconds, peaks = _costs(models, timed_batch, device)
    best = max(scores, key=lambda size: (scores[size][0], -size))
    found = []
    for size in models:
        drops = None if drawn[size] is None else 100 * (drawn[best] - drawn[size])
        found.append(
            AtSize(
                size=size,
                tokens=_tokens(models[size], size),
                mean_recall=scores[size][0],
                interval=None if drawn[size] is None else interval(drawn[size]),
                metric=scores[size][1],
                drop=100 * (scores[best][0] - scores[size][0]),
                drop_interval=None if drops is None else interval(drops),
                milliseconds=1000 * seconds[size, 1],
                pictures_per_second=timed_batch / seconds[size, timed_batch],
                peak_mib=peaks[size] / memory.MIB,
            )
        )
    return Resolutions(
        sizes=found,
        native=native,
        metric=name,
        best=best,
        recommended=min(one.size for one in found if one.drop <= budget + 1e-9),
        budget=budget,
        area=area({one.size: one.mean_recall for one in found}),
        batch_size=timed_batch,
        device=device.type,
    )


def _at(embedded: EmbeddedPairs, model: nn.Module, processor: Any, domain: Domain, batch_size: int) -> EmbeddedPairs:
    """The same pairs with their pictures embedded anew. On this process alone, unlike `RetrievalEvaluator.embed`."""
    compare = embedded.embedder.similarity_function
    embedder = ClipEmbedder(model, processor, domain=domain, batch_size=batch_size, similarity=compare)
    images = (embedded.pairs[row]["image"] for row in embedded.rows)
    return replace(embedded, embedder=embedder, image_embeds=embedder.embed_images(images, progress=embedded.progress))


def _costs(models: dict[int, nn.Module], batch_size: int, device: torch.device):
    """Median seconds of a forward pass by (size, batch), and the peak of bytes of a batch by size."""
    batches = sorted({1, batch_size})
    taken: dict[tuple[int, int], list[float]] = {(size, batch): [] for size in models for batch in batches}
    peaks = {}
    for size, model in models.items():  # the first pass of a size also prepares kernels
        _forward(model, size, batch_size, device)
        memory.release_free_blocks()
        with memory.Peak(device) as peak:
            _forward(model, size, batch_size, device)
        peaks[size] = peak.above
        _forward(model, size, 1, device)
    start = time.perf_counter()
    for _ in range(ROUNDS):
        for size, batch in taken:
            taken[size, batch].append(_forward(models[size], size, batch, device))
        if time.perf_counter() - start > SECONDS:
            break
    return {key: statistics.median(values) for key, values in taken.items()}, peaks


def _forward(model: nn.Module, size: int, batch: int, device: torch.device) -> float:
    """Seconds to embed a batch of pixels that lie on the device already."""
    dtype = next(model.parameters()).dtype
    pixels = torch.zeros(batch, 3, size, size, device=device, dtype=dtype)
    with inference(model):
        _finish(device)
        start = time.perf_counter()
        model.get_image_features(pixel_values=pixels)
        _finish(device)
        return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _tokens(model: nn.Module, size: int) -> int:
    positions = find_image_positions(model)
    return (size // positions.patch) ** 2 + positions.others if positions is not None else 0
