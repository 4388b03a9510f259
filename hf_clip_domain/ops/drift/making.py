"""Makes a reference from a model and the pairs that it did not train on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from hf_clip_domain.data.samples import available_samples, load_samples
from hf_clip_domain.data.text import clean_caption
from hf_clip_domain.embedder import ClipEmbedder, image_settings
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.terminology import available_terminologies, load_terminology
from hf_clip_domain.models.fingerprint import fingerprint
from hf_clip_domain.models.positions import text_capacity
from hf_clip_domain.ops.drift.reference import FEWEST_ROWS, Reference
from hf_clip_domain.serving.sketches import buckets, count_texts, sketch

ROWS = 1000
_CHUNK = 256
_DOMAIN_CAPTIONS = 60


def identity(embedder: ClipEmbedder) -> dict[str, Any]:
    """What windows must agree with: `revision` and `resolution`."""
    return {"revision": fingerprint(embedder.model), "resolution": image_settings(embedder.processor)[0]}


def make_reference(
    embedder: ClipEmbedder,
    pairs: Sequence[dict[str, Any]],
    *,
    train_texts: Iterable[Sequence[str]] | None = None,
    model: str = "",
    dataset: str = "",
    rows: int = ROWS,
    progress: bool | None = None,
) -> Reference:
    """Embed held-out pairs and keep what monitoring needs.

    Args:
        pairs: rows with `image`, `text`, and where they have it `label` and `group`; at most `rows` of them are drawn by
            chance, with one caption each, as a request has one.
        train_texts: the captions of each training row, for the vocabulary; without them new terms are not tested.
        model, dataset: names for the report and its commands.

    Raises:
        ClipDomainError: fewer than 50 pairs, or one that cannot be embedded.
    """
    if len(pairs) < FEWEST_ROWS:
        raise ClipDomainError(f"a drift reference needs at least {FEWEST_ROWS} held-out pairs; there are {len(pairs)}.")
    draw = np.random.default_rng(0)
    numbers = [int(row) for row in np.sort(draw.permutation(len(pairs))[:rows])]
    without_pictures = pairs.remove_columns("image") if hasattr(pairs, "remove_columns") else pairs
    chosen = [without_pictures[row] for row in numbers]
    texts = [row["text"] if isinstance(row["text"], str) else str(draw.choice(row["text"])) for row in chosen]
    images = embedder.embed_images((pairs[row]["image"] for row in numbers), progress=progress)
    embeds = embedder.embed_texts(texts, progress=progress)
    hashed = hashed_texts(embedder, texts)
    groups = [str(row.get("group") or f"row {place}") for place, row in enumerate(chosen)]
    names, sketches, index = _domains(embedder)
    arrays = {
        "image_sketches": sketch(images.numpy()),
        "text_sketches": sketch(embeds.numpy()),
        "pair_scores": pair_scores(embedder, images, embeds),
        "clusters": np.unique(groups, return_inverse=True)[1].astype(np.int32),
        "token_counts": count_texts(hashed),
        "image_embeds": images.numpy().astype(np.float16),
        "text_embeds": embeds.numpy().astype(np.float16),
        "domain_sketches": sketches,
        "domain_index": index,
    }
    if train_texts is not None:
        captions = [text for row in train_texts for text in ([row] if isinstance(row, str) else row)]
        known = count_texts(hashed_texts(embedder, captions)) > 0
        arrays["vocabulary"] = known
        arrays["unseen"] = np.array([np.count_nonzero(~known[text]) for text in hashed], dtype=np.int32)
        arrays["tokens"] = np.array([len(text) for text in hashed], dtype=np.int32)
    meta = {
        **identity(embedder),
        "model": model,
        "dataset": dataset,
        "domain": embedder.domain.name if embedder.domain is not None else "general",
        "origin": "held-out pairs",
        "domains": names,
        "labels": [str(row.get("label") or "") for row in chosen],
        "package": version("hf-clip-domain"),
    }
    return Reference(meta, arrays)


def hashed_texts(embedder: ClipEmbedder, texts: Sequence[str]) -> list[np.ndarray]:
    """The hashed tokens of each text, cleaned and cut as the model reads it."""
    if not texts:
        return []
    if embedder.domain is not None:
        texts = [clean_caption(text, embedder.domain) for text in texts]
    tokenizer = embedder.processor.tokenizer
    most = min(text_capacity(embedder.model), tokenizer.model_max_length)
    return [buckets(ids) for ids in tokenizer(list(texts), truncation=True, max_length=most)["input_ids"]]


def pair_scores(embedder: ClipEmbedder, images: torch.Tensor, texts: torch.Tensor) -> np.ndarray:
    """The similarity of each picture `(n, d)` with its own text: `(n,)` float32."""
    parts = [
        embedder.similarity_function(images[start : start + _CHUNK], texts[start : start + _CHUNK]).diagonal()
        for start in range(0, len(images), _CHUNK)
    ]
    return torch.cat(parts).float().numpy()


def _domains(embedder: ClipEmbedder) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts typical of each packaged domain: names, sketches `(t, 64)`, and the domain of each `(t,)`."""
    names = available_samples()
    texts, index = [], []
    for number, name in enumerate(names):
        own = [
            caption
            for row in load_samples(name, train=_DOMAIN_CAPTIONS, validation=0, test=0)["train"]["text"]
            for caption in row
        ]
        if name in available_terminologies():
            own += [triple.text for triple in load_terminology(name).triplets]
        texts += own
        index += [number] * len(own)
    return names, sketch(embedder.embed_texts(texts, progress=False).numpy()), np.array(index, dtype=np.int8)
