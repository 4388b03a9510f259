"""Answers as JSON, written straight from arrays."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response


def answer(content: Any, status: int = 200) -> Response:
    """JSON; arrays of float32 are written as they are."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json")
