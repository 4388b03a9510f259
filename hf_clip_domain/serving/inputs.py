"""From a request's body, JSON or a multipart form, to a checked object."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from hf_clip_domain.serving.errors import RequestError
from hf_clip_domain.serving.schemas import (
    ClassifyRequest,
    EmbeddingsRequest,
    GalleryAddRequest,
    PairsRequest,
    SearchRequest,
    SimilarityRequest,
)

Body = TypeVar("Body", bound=BaseModel)
_PARTS = 2000  # of a form; what an endpoint takes of them is checked afterwards


async def read_body(request: Request, kind: type[Body]) -> Body:
    """The body as an object; none at all stands for `{}`.

    Raises:
        RequestError: 400 malformed, 415 another content type, 422 not such an object.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == "multipart/form-data" and kind in _FORMS:
        plain = await _read_form(request, kind)
    else:
        body = await request.body()
        if body and media != "application/json":
            takes = "application/json" + (" or multipart/form-data" if kind in _FORMS else "")
            raise RequestError(415, f"The content type must be {takes}.", code="media_type")
        try:
            plain = orjson.loads(body or b"{}")
        except orjson.JSONDecodeError as error:
            raise RequestError(
                400, f"The body is not valid JSON (line {error.lineno}, column {error.colno}).", code="bad_json"
            ) from error
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        raise _explained(error) from error


def _explained(error: ValidationError) -> RequestError:
    """The first mistake, with its place, and never with what was sent."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ""
    for part in first["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part.isidentifier():  # a union's branches are named by their types
            place += f".{part}" if place else part
    words = f"{place}: {first['msg']}." if place else f"{first['msg']}."
    return RequestError(422, words, code="invalid_body", param=place[:200] or None)


async def _read_form(request: Request, kind: type[BaseModel]) -> dict[str, Any]:
    try:
        async with request.form(max_files=_PARTS, max_fields=_PARTS) as form:
            files = [
                (value.filename or "", await value.read())
                for name, value in form.multi_items()
                if isinstance(value, UploadFile) and name in ("image", "images", "input")
            ]
            return _FORMS[kind](form, files)
    except (MultiPartException, UnicodeDecodeError, KeyError) as error:
        raise RequestError(400, "The multipart form is malformed, or has too many parts.", code="bad_form") from error


Files = list[tuple[str, bytes]]


def _texts(form: FormData, name: str) -> list[str]:
    return [value for value in form.getlist(name) if isinstance(value, str)]


def _plain(form: FormData, *names: str) -> dict[str, str]:
    return {name: texts[-1] for name in names if (texts := _texts(form, name))}


def _images(files: Files) -> list[bytes]:
    return [data for _, data in files]


def _embeddings(form: FormData, files: Files) -> dict[str, Any]:
    inputs = [{"text": text} for text in _texts(form, "input")] + [{"image": data} for data in _images(files)]
    return {"input": inputs, **_plain(form, "model", "encoding_format", "dimensions")}


def _similarity(form: FormData, files: Files) -> dict[str, Any]:
    return {"images": _images(files), "texts": _texts(form, "texts"), **_plain(form, "mode", "model")}


def _pairs(form: FormData, files: Files) -> dict[str, Any]:
    texts = _texts(form, "texts")
    if len(texts) != len(files):
        raise RequestError(
            422, f"The form has {len(files)} images and {len(texts)} texts; expected as many.", code="invalid_body"
        )
    pairs = [{"image": data, "text": text} for data, text in zip(_images(files), texts, strict=True)]
    return {"pairs": pairs, **_plain(form, "model")}


def _classify(form: FormData, files: Files) -> dict[str, Any]:
    lists = {name: texts for name in ("labels", "templates") if (texts := _texts(form, name))}
    return {"images": _images(files), **lists, **_plain(form, "model")}


def _search(form: FormData, files: Files) -> dict[str, Any]:
    image = {"image": files[0][1]} if files else {}
    return {**image, **_plain(form, "text", "k", "model")}


def _gallery(form: FormData, files: Files) -> dict[str, Any]:
    return {"items": [{"id": name, "image": data} for name, data in files]}


_FORMS = {
    EmbeddingsRequest: _embeddings,
    SimilarityRequest: _similarity,
    PairsRequest: _pairs,
    ClassifyRequest: _classify,
    SearchRequest: _search,
    GalleryAddRequest: _gallery,
}
