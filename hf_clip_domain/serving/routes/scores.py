"""`POST /similarity`, `/pairs` and `/classify`: what a model's two towers say together."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fastapi import FastAPI, Request, Response

from hf_clip_domain.embedder import GENERIC_PROMPTS
from hf_clip_domain.serving.answers import answer
from hf_clip_domain.serving.errors import RequestError
from hf_clip_domain.serving.inputs import read_body
from hf_clip_domain.serving.model import LoadedModel
from hf_clip_domain.serving.openapi import described
from hf_clip_domain.serving.quality import PictureFacts
from hf_clip_domain.serving.schemas import (
    ClassifyRequest,
    ClassifyResponse,
    PairsRequest,
    PairsResponse,
    SimilarityRequest,
    SimilarityResponse,
)
from hf_clip_domain.serving.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """The endpoints."""
    engine, settings = service.engine, service.settings

    async def both(
        model: LoadedModel, images: list[Any], texts: list[str], facts: PictureFacts | None
    ) -> tuple[np.ndarray, np.ndarray]:
        service.check_count("images", len(images), settings.max_items)
        service.check_texts("texts", texts)
        return await asyncio.gather(
            engine.embed_all_pictures(model, images, "images", facts), engine.embed_texts(model, texts)
        )

    form = {"images": "files", "texts": "texts", "mode": "text", "model": "text"}

    @app.post("/similarity", **described(SimilarityResponse, SimilarityRequest, form))
    async def similarity(request: Request) -> Response:
        """Every picture with every text, or one by one."""
        body = await read_body(request, SimilarityRequest)
        if body.mode == "pairs" and len(body.images) != len(body.texts):
            raise RequestError(
                422,
                f"mode is pairs, with {len(body.images)} images and {len(body.texts)} texts; expected as many.",
                code="unequal_pairs",
            )
        model, facts, paired = service.model(body.model), service.facts(), body.mode == "pairs"
        images, texts = await both(model, body.images, body.texts, facts)
        scores = _pairwise(model, images, texts) if paired else _matrix(model, images, texts)
        own = (
            {"pair_scores": scores, "pairs": (images, texts)} if paired else {}
        )  # of all with all nobody says which belong together
        service.record(model, facts, body.texts, image_embeds=images, text_embeds=texts, **own)
        return answer({"similarity": scores, "model": settings.name})

    @app.post("/pairs", **described(PairsResponse, PairsRequest, {"images": "files", "texts": "texts"}))
    async def pairs(request: Request) -> Response:
        """One score for each pair; a picture that cannot be read fails its own pair only."""
        body = await read_body(request, PairsRequest)
        model, facts = service.model(body.model), service.facts()
        service.check_count("pairs", len(body.pairs), settings.max_items)
        service.check_texts("pairs", [pair.text for pair in body.pairs])
        found, texts = await asyncio.gather(
            engine.embed_pictures(model, [pair.image for pair in body.pairs], facts),
            engine.embed_texts(model, [pair.text for pair in body.pairs]),
        )
        whole = [place for place, row in enumerate(found) if not isinstance(row, RequestError)]
        results = [{"index": place, "score": None, "error": None} for place in range(len(found))]
        read: dict[str, Any] = {}
        if whole:
            images = np.stack([found[place] for place in whole])
            scores = _pairwise(model, images, texts[whole])
            for place, score in zip(whole, scores, strict=True):
                results[place]["score"] = score
            read = {"image_embeds": images, "pair_scores": scores, "pairs": (images, texts[whole])}
        service.record(model, facts, [pair.text for pair in body.pairs], text_embeds=texts, **read)
        for place, row in enumerate(found):
            if isinstance(row, RequestError):
                results[place]["error"] = row.at(f"pairs[{place}].image").details
        return answer({"results": results, "model": settings.name})

    form = {"images": "files", "labels": "texts", "templates": "texts", "model": "text"}

    @app.post("/classify", **described(ClassifyResponse, ClassifyRequest, form))
    async def classify(request: Request) -> Response:
        """Zero-shot classification: a label's prompts are averaged; the probabilities of a picture sum to 1."""
        body = await read_body(request, ClassifyRequest)
        model, facts = service.model(body.model), service.facts()
        domain = model.embedder.domain
        labels = body.labels or (list(domain.classes) if domain is not None else [])
        if not labels:
            raise RequestError(
                400, "This model's domain has no classes of its own: send labels.", code="no_labels", param="labels"
            )
        templates = body.templates or (domain.prompts if domain is not None else ()) or GENERIC_PROMPTS
        service.check_count("images", len(body.images), settings.max_items)
        service.check_count("labels", len(labels), settings.max_labels)
        # As many prompts as a whole queue takes are still one request's.
        service.check_count("labels times templates", len(labels) * len(templates), settings.queue)
        prompts = [template.replace("{}", label) for label in labels for template in templates]
        service.check_texts("labels", prompts, settings.queue)
        images, texts = await asyncio.gather(
            engine.embed_all_pictures(model, body.images, "images", facts), engine.embed_texts(model, prompts)
        )
        classes = torch.from_numpy(texts).unflatten(0, (len(labels), len(templates))).mean(dim=1)  # (c, d)
        classes = F.normalize(classes, dim=-1) if model.normalised else classes
        scores = torch.from_numpy(_matrix(model, images, classes.numpy()))
        chances = (model.logit_scale * scores).softmax(dim=-1).numpy()  # (n, c)
        # Not the labels: they are the program's words, not a user's.
        best = scores.amax(dim=-1).numpy()
        service.record(model, facts, image_embeds=images, top_scores=best, probabilities=chances)
        results = [
            {"index": place, "label": labels[int(row.argmax())], "probabilities": row}
            for place, row in enumerate(chances)
        ]
        calibrated = model.embedder.logit_scale is not None
        return answer({"labels": labels, "results": results, "calibrated": calibrated, "model": settings.name})


@torch.inference_mode()
def _matrix(model: LoadedModel, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """`(n, d), (m, d) -> (n, m)` by the model's own similarity."""
    scores = model.embedder.similarity_function(torch.from_numpy(images), torch.from_numpy(texts))
    return np.ascontiguousarray(scores.cpu().numpy())


def _pairwise(model: LoadedModel, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """`(n, d), (n, d) -> (n,)`"""
    return np.ascontiguousarray(np.diagonal(_matrix(model, images, texts)))
