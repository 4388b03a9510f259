"""Makes a reference from a model and the pairs that it did not train on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset, concatenate_datasets

from hf_clip_domain import __version__
from hf_clip_domain.data.samples import available_samples, load_samples
from hf_clip_domain.data.text import clean_caption
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.terminology import available_terminologies, load_terminology
from hf_clip_domain.models.fingerprint import fingerprint
from hf_clip_domain.models.image_sizes import image_settings
from hf_clip_domain.models.positions import text_capacity
from hf_clip_domain.ops.drift.reference import FEWEST_ROWS, REFERENCE_FILE, Reference
from hf_clip_domain.serving.centre import Centre
from hf_clip_domain.serving.quality import quality
from hf_clip_domain.serving.sketches import BUCKETS, buckets, count_texts, sketch

ROWS = 1000
# Rows by which embeddings are whitened.
OTHERS = 500
_CHUNK = 256
_DOMAIN_PICTURES = 25
# Enough for any vocabulary.
_VOCABULARY_ROWS = 200_000


def identity(embedder: ClipEmbedder) -> dict[str, Any]:
    """What windows must agree with: `revision` and `resolution`."""
    return {"revision": fingerprint(embedder.model), "resolution": image_settings(embedder.processor)[0]}


def make_reference(
    embedder: ClipEmbedder,
    pairs: Sequence[dict[str, Any]],
    *,
    train: Any = None,
    model: str = "",
    dataset: str = "",
    rows: int = ROWS,
    progress: bool | None = None,
) -> Reference:
    """Embed held-out pairs and keep what monitoring needs.

    Args:
        pairs: rows with `image`, `text`, and where they have it `label` and `group`; at most `rows` of them are drawn by
            chance, with one caption each, as a request has one.
        train: the rows of training: their captions are the vocabulary, and some of them tell in which directions
            embeddings vary. Without them new terms are not tested, and a third of `pairs` serves for the directions.
        model, dataset: names for the report and its commands.

    Raises:
        ClipDomainError: fewer than 50 pairs, or one that cannot be embedded.
    """
    if len(pairs) < FEWEST_ROWS:
        raise ClipDomainError(f"a drift reference needs at least {FEWEST_ROWS} held-out pairs; there are {len(pairs)}.")
    draw = np.random.default_rng(0)
    order = draw.permutation(len(pairs))
    if train is None:
        groups = [str(row.get("group") or number) for number, row in enumerate(_without_pictures(pairs))]
        part = draw.permutation(len(set(groups)))[np.unique(groups, return_inverse=True)[1]] % 3  # whole groups
        others = _drawn(pairs, order[part[order] == 0], OTHERS)
        order = order[part[order] != 0]
    else:
        others = _drawn(train, draw.permutation(len(train)), OTHERS)
    chosen, pictures, texts = _drawn(pairs, order, rows)
    qualities: list[np.ndarray] = []
    images = embedder.embed_images(noting_quality(embedder, pictures, qualities), progress=progress)
    embeds = embedder.embed_texts(texts, progress=progress)
    other_images = embedder.embed_images(others[1], progress=progress).numpy()
    other_texts = embedder.embed_texts(others[2], progress=progress).numpy()
    centre = Centre(other_images.mean(axis=0), other_texts.mean(axis=0))
    hashed = hashed_texts(embedder, texts)
    groups = [str(row.get("group") or f"row {place}") for place, row in enumerate(chosen)]
    names, sketches, index = _domains(embedder)
    arrays = {
        "image_sketches": sketch(images.numpy()),
        "text_sketches": sketch(embeds.numpy()),
        "image_others": sketch(other_images),
        "text_others": sketch(other_texts),
        "image_mean": centre.image,
        "text_mean": centre.text,
        "image_qualities": np.stack(qualities),
        "pair_scores": pair_scores(embedder, images, embeds),
        "pair_margins": centre.margins(images.numpy(), embeds.numpy()),
        "clusters": np.unique(groups, return_inverse=True)[1].astype(np.int32),
        "token_counts": count_texts(hashed),
        "image_embeds": images.numpy().astype(np.float16),
        "text_embeds": embeds.numpy().astype(np.float16),
        "domain_sketches": sketches,
        "domain_index": index,
    }
    if train is not None:
        known = _vocabulary(embedder, train["text"] if hasattr(train, "column_names") else (r["text"] for r in train))
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
        "package": __version__,
    }
    return Reference(meta, arrays)


def write_run_reference(
    folder: Path, embedder: ClipEmbedder, pairs: Mapping[str, Any], *, dataset: str | None
) -> Path | None:
    """The reference of a finished run, beside its model; none where fewer than 50 pairs were held out.

    Args:
        pairs: the splits of the run; `validation` and `test`, which may be one, are what it did not train on. Training
            rows that are a stream are not read again.
    """
    file = folder / REFERENCE_FILE
    file.unlink(missing_ok=True)  # of another run into the same folder
    # One split may stand under both names; the library gives equal tables equal fingerprints.
    held_out = {rows._fingerprint: rows for name, rows in pairs.items() if name != "train"}
    rows = concatenate_datasets(list(held_out.values()))
    if len(rows) < FEWEST_ROWS:
        return None
    train = None if isinstance(pairs["train"], IterableDataset) else pairs["train"]
    options = {"train": train, "model": str(folder), "dataset": dataset or "embedded samples"}
    make_reference(embedder, rows, **options).save(file)
    return file


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


def noting_quality(
    embedder: ClipEmbedder, pictures: Iterable[Any], qualities: list[np.ndarray]
) -> Iterator[torch.Tensor]:
    """Pictures as the model takes them `(3, h, w)`; how sharp and noisy each is, `(4,)`, is noted on the way."""
    for position, picture in enumerate(pictures):
        pixels = embedder.pixels(position, picture)
        qualities.append(quality(pixels.numpy()))
        yield pixels


def _drawn(pairs: Any, order: np.ndarray, most: int) -> tuple[list[dict[str, Any]], Iterator[Any], list[str]]:
    """At most so many rows, the first of `order`: all but the picture, the pictures one by one, a caption each."""
    numbers = [int(row) for row in np.sort(order[:most])]
    table, draw = _without_pictures(pairs), np.random.default_rng(0)
    rows = [table[row] for row in numbers]
    texts = [row["text"] if isinstance(row["text"], str) else str(draw.choice(row["text"])) for row in rows]
    return rows, (pairs[row]["image"] for row in numbers), texts


def _without_pictures(pairs: Any) -> Any:
    return pairs.remove_columns("image") if hasattr(pairs, "remove_columns") else pairs


def _vocabulary(embedder: ClipEmbedder, texts: Iterable[Sequence[str]]) -> np.ndarray:
    """Which buckets occur in the captions of training: `(BUCKETS,)` bool."""
    known = np.zeros(BUCKETS, dtype=bool)
    rows = islice(texts, _VOCABULARY_ROWS)
    while chunk := list(islice(rows, _CHUNK)):
        captions = [text for row in chunk for text in ([row] if isinstance(row, str) else row)]
        known |= count_texts(hashed_texts(embedder, captions)) > 0
    return known


def _domains(embedder: ClipEmbedder) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts typical of each packaged domain: names, sketches `(t, 64)`, and the domain of each `(t,)`."""
    names = available_samples()
    texts, index = [], []
    for number, name in enumerate(names):
        own = [
            caption
            for row in load_samples(name, train=_DOMAIN_PICTURES, validation=0, test=0)["train"]["text"]
            for caption in row
        ]
        if name in available_terminologies():
            own += [triple.text for triple in load_terminology(name).triplets]
        texts += own
        index += [number] * len(own)
    return names, sketch(embedder.embed_texts(texts, progress=False).numpy()), np.array(index, dtype=np.int8)
