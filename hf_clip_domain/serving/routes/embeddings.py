"""`POST /v1/embeddings`, as OpenAI's clients call it."""

from __future__ import annotations

import asyncio
import base64

import numpy as np
from fastapi import FastAPI, Request, Response

from hf_clip_domain.serving.answers import answer
from hf_clip_domain.serving.errors import RequestError
from hf_clip_domain.serving.inputs import read_body
from hf_clip_domain.serving.model import LoadedModel
from hf_clip_domain.serving.openapi import described
from hf_clip_domain.serving.quality import PictureFacts
from hf_clip_domain.serving.schemas import EmbeddingsRequest, EmbeddingsResponse, ImageInput, TextInput
from hf_clip_domain.serving.service import Service

Input = str | TextInput | ImageInput
_FORM = {"input": "texts", "images": "files", "encoding_format": "text", "model": "text"}


def add_routes(app: FastAPI, service: Service) -> None:
    """The endpoint."""

    @app.post("/v1/embeddings", **described(EmbeddingsResponse, EmbeddingsRequest, _FORM))
    async def embeddings(request: Request) -> Response:
        """Embeddings of texts and pictures, in the order they came."""
        body = await read_body(request, EmbeddingsRequest)
        inputs = body.input if isinstance(body.input, list) else [body.input]
        service.check_count("input", len(inputs), service.settings.max_items)
        model = service.model(body.model)
        if body.dimensions not in (None, model.dimensions):
            raise RequestError(
                400, f"This model has {model.dimensions} dimensions.", code="wrong_dimensions", param="dimensions"
            )
        facts = service.facts()
        rows = await embed_mixed(service, model, inputs, facts)
        _record(service, model, inputs, rows, facts)
        as_base64 = body.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": place, "embedding": _base64(row) if as_base64 else row}
            for place, row in enumerate(rows)
        ]
        # Tokens of cached texts are not counted anew: what an answer costs here is not by the token.
        return answer(
            {
                "object": "list",
                "data": data,
                "model": service.settings.name,
                "usage": {"prompt_tokens": 0, "total_tokens": 0},
            }
        )


async def embed_mixed(
    service: Service, model: LoadedModel, inputs: list[Input], facts: PictureFacts | None = None
) -> list[np.ndarray]:
    """A row for each text and picture, in their order."""
    texts = {place: item for place, item in enumerate(inputs) if isinstance(item, str)}
    texts |= {place: item.text for place, item in enumerate(inputs) if isinstance(item, TextInput)}
    images = {place: item.image for place, item in enumerate(inputs) if isinstance(item, ImageInput)}
    service.check_texts("input", list(texts.values()))
    if not images:
        rows = await service.engine.embed_texts(model, list(texts.values()))
        return [rows[place] for place in _inverse(list(texts))]
    tasks = [service.engine.embed_pictures(model, list(images.values()), facts)]
    tasks += [service.engine.embed_texts(model, list(texts.values()))] if texts else []
    found = await asyncio.gather(*tasks)
    for place, row in zip(images, found[0], strict=True):
        if isinstance(row, RequestError):
            raise row.at(f"input[{place}]")
    by_place = dict(zip(images, found[0], strict=True))
    by_place |= dict(zip(texts, found[1], strict=True)) if texts else {}
    return [by_place[place] for place in range(len(inputs))]


def _record(
    service: Service, model: LoadedModel, inputs: list[Input], rows: list[np.ndarray], facts: PictureFacts | None
) -> None:
    if facts is None:  # spares the lists
        return
    images = [row for item, row in zip(inputs, rows, strict=True) if isinstance(item, ImageInput)]
    texts = [item if isinstance(item, str) else item.text for item in inputs if not isinstance(item, ImageInput)]
    embeds = [row for item, row in zip(inputs, rows, strict=True) if not isinstance(item, ImageInput)]
    service.record(model, facts, texts, image_embeds=images, text_embeds=embeds)


def _inverse(places: list[int]) -> list[int]:
    inverse = [0] * len(places)
    for index, place in enumerate(places):
        inverse[place] = index
    return inverse


def _base64(row: np.ndarray) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
