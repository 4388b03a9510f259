"""The endpoints' description: bodies are read by `inputs`, so FastAPI is told of them here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from hf_clip_domain import __version__
from hf_clip_domain.serving.boundary import SHORTEST, TIMEOUT_HEADER
from hf_clip_domain.serving.schemas import REQUESTS, ErrorResponse

_REF = "#/components/schemas/{model}"
_STATUSES = {
    400: "Wrong input",
    401: "No valid key",
    404: "Not here",
    413: "Too large",
    415: "Unsupported media",
    422: "Not what the schema says",
    429: "Too often",
    503: "Too much at once, or not ready",
    504: "Out of time",
}


def described(
    answer: type[BaseModel], body: type[BaseModel] | None = None, form: dict[str, str] | None = None
) -> dict[str, Any]:
    """Keyword arguments of a route.

    Args:
        answer: what it gives with status 200.
        body: what it takes.
        form: fields of the same as a multipart form: `file`, `files`, `text` or `texts` by name.
    """
    extra: dict[str, Any] = {}
    if body is not None:
        content = {"application/json": {"schema": {"$ref": _REF.format(model=body.__name__)}}}
        examples = body.model_config.get("json_schema_extra", {}).get("examples", [])
        if examples:
            content["application/json"]["examples"] = {
                f"example {number}": {"value": example} for number, example in enumerate(examples, start=1)
            }
        if form:
            content["multipart/form-data"] = {"schema": {"type": "object", "properties": _fields(form)}}
        extra["requestBody"] = {"content": content, "required": True}
    responses: dict[int | str, dict[str, Any]] = {200: {"model": answer}}
    responses |= {status: {"model": ErrorResponse, "description": words} for status, words in _STATUSES.items()}
    return {"openapi_extra": extra, "responses": responses, "response_model": None}


def _fields(form: dict[str, str]) -> dict[str, Any]:
    text, file = {"type": "string", "minLength": 1}, {"type": "string", "format": "binary"}
    one = {"text": text, "file": file}
    many = {"texts": {"type": "array", "items": text}, "files": {"type": "array", "items": file}}
    return {name: (one | many)[kind] for name, kind in form.items()}


def describe_app(app: FastAPI) -> dict[str, Any]:
    """The whole description, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(title="hf-clip-domain", version=__version__, routes=app.routes)
        _, definitions = models_json_schema([(body, "validation") for body in REQUESTS], ref_template=_REF)
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas |= definitions.get("$defs", {})
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                if path not in ("/", "/healthz", "/readyz"):
                    operation["security"] = [{"key": []}]
                if "requestBody" in operation:
                    operation.setdefault("parameters", []).append(_TIMEOUT)
        app.openapi_schema = schema
    return app.openapi_schema


_TIMEOUT = {
    "name": TIMEOUT_HEADER.decode(),
    "in": "header",
    "required": False,
    "description": "Seconds after which the answer is of no use; at most the server's own limit.",
    "schema": {"type": "number", "minimum": SHORTEST},
}
