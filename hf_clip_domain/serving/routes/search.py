"""`POST /search` over the gallery, and the gallery's changes."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request, Response

from hf_clip_domain.serving.answers import answer
from hf_clip_domain.serving.errors import RequestError
from hf_clip_domain.serving.gallery import Entry, Gallery
from hf_clip_domain.serving.inputs import read_body
from hf_clip_domain.serving.model import IMAGE, TEXT
from hf_clip_domain.serving.openapi import described
from hf_clip_domain.serving.pictures import is_address, read_base64
from hf_clip_domain.serving.schemas import (
    GalleryAddRequest,
    GalleryRemoveRequest,
    GalleryResponse,
    SearchRequest,
    SearchResponse,
)
from hf_clip_domain.serving.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """The endpoints."""
    engine, settings = service.engine, service.settings

    def gallery() -> Gallery:
        if service.models.gallery is None:
            raise RequestError(404, "This server has no gallery; it is started with --gallery.", code="no_gallery")
        return service.models.gallery

    form = {"text": "text", "image": "file", "k": "text", "model": "text"}

    @app.post("/search", **described(SearchResponse, SearchRequest, form))
    async def search(request: Request) -> Response:
        """The gallery's pictures most like a text or a picture, the best first."""
        body = await read_body(request, SearchRequest)
        if (body.text is None) == (body.image is None):
            raise RequestError(422, "Send either a text or an image.", code="invalid_body", param="text")
        pictures, model, facts = gallery(), service.model(body.model), service.facts()
        if body.text is not None:
            service.check_texts("text", [body.text])
            kind, query = TEXT, (await engine.embed_texts(model, [body.text]))[0]
        else:
            kind, query = IMAGE, (await engine.embed_all_pictures(model, [body.image], "image", facts))[0]
        found = await asyncio.to_thread(model.index.search, query, body.k, kind)
        if kind == TEXT:  # a picture's similarity with a picture is of another scale
            best = [score for _, score in found[:1]]
            service.record(model, facts, [body.text], text_embeds=query[None], top_scores=best)
        else:
            service.record(model, facts, image_embeds=query[None])
        entries = [(pictures.entries.get(number), score) for number, score in found]
        hits = [
            {"id": entry.id, "score": score, "metadata": entry.metadata}
            for entry, score in entries
            if entry is not None  # removed a moment ago
        ]
        return answer({"hits": hits, "size": len(pictures), "model": settings.name})

    @app.post("/gallery", **described(GalleryResponse, GalleryAddRequest, {"images": "files"}))
    async def add(request: Request) -> Response:
        """Add pictures, or replace those of the same id; a form's files are named by their file names."""
        body = await read_body(request, GalleryAddRequest)
        service.check_count("items", len(body.items), settings.max_items)
        pictures = gallery()
        items = {item.id: item for item in body.items}  # of one id the last
        contents = {name: await _content(service, item.image) for name, item in items.items()}
        async with pictures.changing:  # and none is swapped meanwhile
            model = service.model()
            rows = await engine.embed_all_pictures(model, list(contents.values()), "items")
            entries = [
                Entry(name, lambda data=data: data, items[name].metadata, len(data)) for name, data in contents.items()
            ]
            size = await pictures.add(model, entries, rows)
        return answer({"size": size, "added": len(entries), "removed": 0})

    @app.post("/gallery/remove", **described(GalleryResponse, GalleryRemoveRequest))
    async def remove(request: Request) -> Response:
        """Remove pictures by id; those that are not there are none of the count."""
        body = await read_body(request, GalleryRemoveRequest)
        service.check_count("ids", len(body.ids), 100 * settings.max_items)
        pictures = gallery()
        async with pictures.changing:
            removed = await pictures.remove(service.model(), body.ids)
        return answer({"size": len(pictures), "added": 0, "removed": removed})


async def _content(service: Service, image: str | bytes) -> bytes:
    if is_address(image):
        return await service.engine.fetcher.fetch(image)
    return read_base64(image, service.settings) if isinstance(image, str) else image
