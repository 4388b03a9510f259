"""What decides an embedding, in hashes: the model with everything that prepares its input, and the dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi

from hf_clip_domain.corpus.rows import Corpus
from hf_clip_domain.data.sources import source_files
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.dual_encoder import embedding_width
from hf_clip_domain.models.image_sizes import image_settings

# Tables of text are hashed whole; of containers the ends, where Parquet keeps the statistics of every column.
_TEXT = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt")
_CONTAINERS = (".parquet", ".arrow", ".tar")
_END = 1 << 16


def model_identity(embedder: ClipEmbedder) -> dict[str, Any]:
    """`{"sha256", "resolution", "width"}` of a model: of its weights, its processor's settings and its domain.

    The name does not count: a model that moved is the same model. To be asked before the weights are rounded.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(embedder.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    processor = embedder.processor
    domain = None if embedder.domain is None else asdict(embedder.domain)
    settings = [processor.image_processor.to_dict(), embedder.model.config.to_dict(), domain, embedder.picture_settings]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    of_the_last_call = {"truncation", "padding"}
    tokenizer = {name: part for name, part in tokenizer.items() if name not in of_the_last_call}
    digest.update(json.dumps(tokenizer, sort_keys=True).encode())
    return {
        "sha256": digest.hexdigest(),
        "resolution": image_settings(processor)[0],
        "width": embedding_width(embedder.model),
    }


def dataset_identity(source: str, corpus: Corpus, revision: str | None) -> dict[str, Any]:
    """`{"sha256", "columns", "key_column"}` of a dataset: of its files, or of its commit on the Hub.

    Text tables are read whole, containers at both ends, and of pictures beside them the size is taken.
    """
    digest = hashlib.sha256()
    files = source_files(source)
    if files is None:
        digest.update(json.dumps(["hub", source, _commit(source, revision)]).encode())
    else:
        for name, path in files:
            digest.update(f"{name} {path.stat().st_size} ".encode())
            for block in _telling(path):
                digest.update(block)
    return {"sha256": digest.hexdigest(), "columns": corpus.columns, "key_column": corpus.key_column}


def _telling(path: Path) -> Iterator[bytes]:
    suffix = path.suffix.lower()
    if suffix not in (*_TEXT, *_CONTAINERS):
        return
    with open(path, "rb") as stream:
        if suffix in _TEXT:
            while block := stream.read(1 << 20):
                yield block
        else:
            yield stream.read(_END)
            stream.seek(max(0, path.stat().st_size - _END))
            yield stream.read(_END)


def _commit(source: str, revision: str | None) -> str:
    try:
        return HfApi().dataset_info(source, revision=revision).sha
    except Exception as error:  # no network: the cache may hold the dataset all the same
        if revision is not None:
            return revision
        raise ClipDomainError(
            f"--dataset_revision is needed for {source}: the Hub does not say which version it is ({error})."
        ) from error
