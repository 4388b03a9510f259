"""What is sent and how its answer is read, the same for the client that waits and the one that does not."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.client.answers import Classification, Hit, PairScore

Answer = TypeVar("Answer")
Image = Any  # a path, bytes, or a PIL image


@dataclass(frozen=True)
class Request(Generic[Answer]):
    """One request.

    Attributes:
        path: on the server.
        read: from the answer's JSON to what the caller gets.
        json: of the body; or, where pictures are sent,
        form, files: fields and pictures of a multipart form, which carries bytes as they are.
    """

    path: str
    read: Callable[[dict[str, Any]], Answer]
    json: dict[str, Any] | None = None
    form: dict[str, Any] = field(default_factory=dict)
    files: list[tuple[str, tuple[str, bytes]]] = field(default_factory=list)

    @property
    def content(self) -> dict[str, Any]:
        """As httpx takes it."""
        return {"data": self.form, "files": self.files} if self.files else {"json": self.json}


def embed_texts(texts: Sequence[str]) -> Request[np.ndarray]:
    return Request("/v1/embeddings", _embeddings, json={"input": list(texts), "encoding_format": "base64"})


def embed_images(images: Sequence[Image]) -> Request[np.ndarray]:
    return Request("/v1/embeddings", _embeddings, form={"encoding_format": "base64"}, files=_files(images))


def similarity(images: Iterable[Image], texts: Iterable[str]) -> Request[np.ndarray]:
    return Request("/similarity", _similarity, form={"texts": listed(texts, "texts")}, files=_files(images))


def pairs(images: Iterable[Image], texts: Iterable[str]) -> Request[list[PairScore]]:
    texts, files = listed(texts, "texts"), _files(images)
    if len(texts) != len(files):
        raise ClipDomainError(f"pairs needs as many texts as images; got {len(files)} images and {len(texts)} texts.")
    return Request("/pairs", _pairs, form={"texts": texts}, files=files)


def classify(
    images: Iterable[Image], labels: Iterable[str] | None, templates: Iterable[str] | None
) -> Request[Classification]:
    form = {"labels": labels, "templates": templates}
    form = {name: listed(values, name) for name, values in form.items() if values is not None}
    return Request("/classify", _classification, form=form, files=_files(images))


def search(text: str | None, image: Image | None, k: int) -> Request[list[Hit]]:
    if (text is None) == (image is None):
        raise ClipDomainError("search takes a text or an image, one of them.")
    if image is not None:
        return Request("/search", _hits, form={"k": str(k)}, files=_files([image]))
    return Request("/search", _hits, json={"text": text, "k": k})


def listed(items: Iterable[Any], name: str) -> list[Any]:
    """The items; one alone is refused, since a string would be taken apart."""
    if isinstance(items, str | bytes | os.PathLike) or hasattr(items, "save"):
        raise ClipDomainError(f"{name} is one {type(items).__name__}; expected a list of them.")
    items = list(items)
    if not items:
        raise ClipDomainError(f"{name} is empty.")
    return items


def _files(images: Iterable[Image]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (f"{place}", _read(image, place))) for place, image in enumerate(listed(images, "images"))]


def _read(image: Image, place: int) -> bytes:
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise ClipDomainError(f"images[{place}]: {image}: {error.strerror}.") from error
    if hasattr(image, "save"):  # PIL's; PNG changes no pixel
        stream = io.BytesIO()
        image.save(stream, "PNG")
        return stream.getvalue()
    raise ClipDomainError(f"images[{place}] is a {type(image).__name__}; expected a path, bytes or a PIL image.")


def _embeddings(answer: dict[str, Any]) -> np.ndarray:
    rows = sorted(answer["data"], key=lambda row: row["index"])
    return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows]).astype(np.float32)


def _similarity(answer: dict[str, Any]) -> np.ndarray:
    return np.array(answer["similarity"], np.float32)


def _pairs(answer: dict[str, Any]) -> list[PairScore]:
    rows = sorted(answer["results"], key=lambda row: row["index"])
    return [PairScore(row["score"], row["error"] and row["error"]["message"]) for row in rows]


def _classification(answer: dict[str, Any]) -> Classification:
    rows = sorted(answer["results"], key=lambda row: row["index"])
    chances = np.array([row["probabilities"] for row in rows], np.float32)
    return Classification(tuple(answer["labels"]), chances, answer["calibrated"])


def _hits(answer: dict[str, Any]) -> list[Hit]:
    return [Hit(hit["id"], hit["score"], hit["metadata"]) for hit in answer["hits"]]
