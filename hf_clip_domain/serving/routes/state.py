"""How the server is: for probes, for Prometheus, and for people."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse

from hf_clip_domain.serving.answers import answer
from hf_clip_domain.serving.openapi import described
from hf_clip_domain.serving.schemas import StateResponse
from hf_clip_domain.serving.service import Service

_DASHBOARD = Path(__file__).parents[1] / "dashboard" / "index.html"
# The page is one file with its own script and style, and talks to nobody but this server.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_routes(app: FastAPI, service: Service) -> None:
    """The endpoints."""
    engine, metrics = service.engine, service.metrics
    for kind in ("text", "image"):
        read = {
            "waiting": lambda kind=kind: engine.batcher.waiting[kind],
            "taken": lambda kind=kind: engine.admitted[kind],
        }
        metrics.gauges(f"queue_{kind}", f"{kind} items in the engine.", "state", read)
    metrics.gauges(
        "cache_hits",
        "Embeddings found, by where.",
        "where",
        {
            f"{kind}_{level}": lambda at=(kind, level): engine.cache.hits[at]
            for kind in ("text", "image")
            for level in ("memory", "disk")
        },
    )
    misses = {kind: lambda kind=kind: engine.cache.misses[kind] for kind in ("text", "image")}
    metrics.gauges("cache_misses", "Embeddings computed.", "kind", misses)
    metrics.gauge("cache_bytes", "Embeddings kept in memory.", lambda: engine.cache.memory.bytes)
    if (recorder := service.recorder) is not None:
        read = {"recorded": lambda: recorder.recorded, "lost": lambda: recorder.lost}
        metrics.gauges("statistics_requests", "Requests in statistics, and those that were lost.", "outcome", read)
        metrics.gauge("statistics_windows", "Files of statistics written.", lambda: recorder.windows)
    metrics.gauge("memory_bytes", "Memory of the process on the model's device.", lambda: service.memory_bytes)

    @app.get("/", include_in_schema=False)
    async def dashboard() -> Response:
        return FileResponse(_DASHBOARD, headers={"content-security-policy": _POLICY, "x-frame-options": "DENY"})

    @app.get("/healthz", **described(StateResponse))
    async def healthz() -> Response:
        """Whether the process answers."""
        return answer({"status": "ok"})

    @app.get("/readyz", **described(StateResponse))
    async def readyz() -> Response:
        """Whether requests should be sent here: 503 while draining, or when the engine has died."""
        ready = engine.batcher.alive and not service.draining
        state = {
            "status": "ready" if ready else "draining" if service.draining else "engine stopped",
            "model": service.models.current.describe(),
            "queue": engine.queue(),
            "memory_bytes": service.memory_bytes,
        }
        return answer(state, 200 if ready else 503)

    @app.get("/metrics", include_in_schema=False)
    async def prometheus() -> Response:
        text = metrics.text()
        if service.drift is not None:
            text += await asyncio.to_thread(service.drift.prometheus, service.models.current.weights)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/stats", include_in_schema=False)
    async def stats() -> Response:
        drift = None
        if service.drift is not None:
            drift = await asyncio.to_thread(service.drift.read, service.models.current.weights)
        return answer(
            {
                **metrics.recent(),
                "queue": engine.queue(),
                "cache": engine.cache.stats(),
                "memory_bytes": service.memory_bytes,
                "model": {"name": service.settings.name, **service.models.current.describe()},
                "drift": drift,
                "statistics": service.recorder.stats() if service.recorder is not None else None,
                "uptime_s": time.time() - metrics.started,
            }
        )
