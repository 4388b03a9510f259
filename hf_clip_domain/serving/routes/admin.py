"""`POST /admin/reload` and `/admin/rollback`: another model, without a request lost."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.answers import answer
from hf_clip_domain.serving.errors import RequestError
from hf_clip_domain.serving.inputs import read_body
from hf_clip_domain.serving.openapi import described
from hf_clip_domain.serving.registry import is_registered
from hf_clip_domain.serving.schemas import ReloadRequest, StateResponse
from hf_clip_domain.serving.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """The endpoints."""

    @app.post("/admin/reload", **described(StateResponse, ReloadRequest))
    async def reload(request: Request) -> Response:
        """Load the model again beside the one that serves, check it, and swap; 409 when it fails its checks."""
        body = await read_body(request, ReloadRequest)
        if body.version is not None and not is_registered(service.settings.model):
            raise RequestError(400, "Only a model from a registry has versions.", code="no_versions", param="version")
        try:
            model = await service.models.reload(body.version)
        except ClipDomainError as error:
            raise _refused(error) from error
        return answer({"status": "swapped", "model": model.describe()})

    @app.post("/admin/rollback", **described(StateResponse))
    async def rollback() -> Response:
        """Serve the model before again; 409 where there is none."""
        try:
            model = await service.models.roll_back()
        except ClipDomainError as error:
            raise _refused(error) from error
        return answer({"status": "rolled back", "model": model.describe()})


def _refused(error: ClipDomainError) -> RequestError:
    return RequestError(409, str(error), code="reload_refused")
