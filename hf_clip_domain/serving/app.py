"""The application: its parts put together, and its life from warm-up to the last answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from hf_clip_domain.serving.auth import Guard
from hf_clip_domain.serving.boundary import Boundary
from hf_clip_domain.serving.canary import check_candidate
from hf_clip_domain.serving.drift_status import DriftStatus
from hf_clip_domain.serving.engine import Engine
from hf_clip_domain.serving.errors import RequestError
from hf_clip_domain.serving.gallery import Gallery
from hf_clip_domain.serving.kernels import choose_kernels
from hf_clip_domain.serving.metrics import Metrics
from hf_clip_domain.serving.model import LoadedModel
from hf_clip_domain.serving.observe import Observer
from hf_clip_domain.serving.openapi import describe_app
from hf_clip_domain.serving.recording import Recorder
from hf_clip_domain.serving.registry import find_version, has_alias, pinned
from hf_clip_domain.serving.routes import admin, embeddings, scores, search, state
from hf_clip_domain.serving.service import Service
from hf_clip_domain.serving.settings import Settings
from hf_clip_domain.serving.swap import Models
from hf_clip_domain.serving.watch import follow


def create_app(settings: Settings, model: LoadedModel | None = None) -> FastAPI:
    """The service as an ASGI application; `app.state.service` has its parts.

    Args:
        settings: all of them.
        model: already loaded; by default loaded now, as the settings say.

    Raises:
        ClipDomainError: the model or the keys cannot be read.
    """
    metrics = Metrics()

    def load(version: str | None) -> LoadedModel:
        loaded = LoadedModel.load(pinned(settings.model, version), device=settings.device)
        return choose_kernels(loaded, settings)

    gallery = Gallery(settings) if settings.gallery else None
    models = Models(model or load(None), load, metrics, gallery)
    recorder = None
    if settings.statistics:
        recorder = Recorder(settings.statistics, settings.statistics_window, models.current)
        models.swapped = recorder.swapped
    drift = DriftStatus(settings.drift) if settings.drift else None
    service = Service(settings, metrics, Engine(settings, metrics), models, recorder, drift)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(check_candidate, models.current, None)  # warms the model up, too
        if gallery is not None:
            await asyncio.to_thread(gallery.index, models.current)
        service.engine.start()
        if recorder is not None:
            recorder.start()
        follows = settings.watch_seconds > 0 and has_alias(settings.model)
        watch = asyncio.create_task(
            follow(models, lambda: find_version(settings.model), settings.watch_seconds)
            if follows
            else asyncio.sleep(0)
        )
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.to_thread(service.engine.close)
            if recorder is not None:
                await asyncio.to_thread(recorder.close)

    app = FastAPI(title="hf-clip-domain", openapi_url=None, docs_url=None, redoc_url=None, lifespan=life)
    app.state.service = service
    for part in (embeddings, scores, search, admin, state):
        part.add_routes(app, service)
    app.openapi = lambda: describe_app(app)  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict:
        return app.openapi()

    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_plainly)
    # The last added is the outermost.
    app.add_middleware(Boundary, settings=settings, metrics=metrics)
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    paths = [route.path for route in app.routes]
    app.add_middleware(Observer, metrics=metrics, paths=paths, draining=lambda: service.draining)
    return app


async def _refuse(request: Request, error: RequestError) -> Response:
    return Response(error.body, error.status, headers={name.decode(): value.decode() for name, value in error.headers})


async def _refuse_plainly(request: Request, error: HTTPException) -> Response:
    known = {404: ("There is nothing at this path.", "not_found"), 405: ("Not with this method.", "wrong_method")}
    message, code = known.get(error.status_code, ("The request is malformed.", "bad_request"))
    response = await _refuse(request, RequestError(error.status_code, message, code=code))
    response.headers.update(error.headers or {})
    return response
