"""Whatever is sent, the answer is 4xx, soon, and without a word of the server's inside."""

import asyncio
import base64
import io
import json
import struct
import time
import zlib

import psutil
import pytest
from PIL import Image

from hf_clip_domain.serving.canary import draw_canary

PICTURE = draw_canary(0)


def png_header(width, height):
    """A PNG that claims its size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def saved(size, kind="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, kind)
    return stream.getvalue()


def bomb():
    """25 million pixels of nothing in a few thousand bytes, within the limit of pixels, cut short."""
    return saved((5000, 5000))[:-20_000]


JPEG = saved((64, 64), "JPEG")
PICTURES = {
    "nothing": (b"", 422),
    "words": (b"plain words, no picture at all", 415),
    "script": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", 415),
    "pdf": (b"%PDF-1.7\n" + PICTURE, 415),
    "zip with a picture in front": (PICTURE[:40] + b"PK\x03\x04" * 20, 400),
    "dicom behind a jpeg's first bytes": (JPEG[:4] + bytes(124) + b"DICM" + bytes(500), 415),
    "truncated": (PICTURE[: len(PICTURE) // 2], 400),
    "only a magic number": (b"\x89PNG\r\n\x1a\n", 400),
    "one pixel": (saved((1, 1)), 400),
    "thin": (saved((4, 8000)), 400),
    "claims 4e18 pixels": (png_header(2**31 - 1, 2**31 - 1), (400, 413)),
    "claims 100 megapixels": (png_header(10_000, 10_000), 413),
    "bomb cut short": (bomb(), 400),
    "scans without end": (JPEG[:-2] + b"\xff\xda\x00\x08" * 5000 + JPEG[-2:], 400),
    "larger than a picture may be": (PICTURE + bytes(2_000_000), 413),
}


@pytest.mark.parametrize("name", PICTURES)
def test_hostile_pictures(folder, serve, name):
    data, expected = PICTURES[name]
    body = {"images": [base64.b64encode(data).decode()], "texts": ["a"]}
    form = {"files": [("images", ("x.png", data))], "data": {"texts": ["a"]}}
    statuses = expected if isinstance(expected, tuple) else (expected,)

    async def ask():
        async with serve(folder, max_image=1_500_000) as (client, _):
            before, started = psutil.Process().memory_info().rss, time.perf_counter()
            answer = await client.post("/similarity", json=body)
            assert answer.status_code in statuses, answer.text
            assert set(answer.json()["error"]) == {"message", "type", "code", "param"}
            assert (await client.post("/similarity", **form)).status_code in (*statuses, 400)
            assert time.perf_counter() - started < 10
            assert psutil.Process().memory_info().rss - before < 400 * 2**20
            assert (await client.post("/v1/embeddings", json={"input": "a"})).status_code == 200

    asyncio.run(ask())


def deep(levels):
    return b'{"input":' + b"[" * levels + b"]" * levels + b"}"


BODIES = {
    "no json": ("/v1/embeddings", b"{", 400),
    "deep": ("/v1/embeddings", deep(100_000), 400),
    "deep enough to parse": ("/v1/embeddings", deep(500), 422),
    "not utf-8": ("/v1/embeddings", b'{"input":"\xff\xfe"}', 400),
    "half a surrogate": ("/v1/embeddings", b'{"input":"\\ud800"}', 400),
    "NUL": ("/v1/embeddings", b'{"input":"a\\u0000b"}', 422),
    "NUL in a label": ("/classify", json.dumps({"images": ["x"], "labels": ["a\0"]}).encode(), 422),
    "NaN": ("/search", b'{"text":"a","k":NaN}', 400),
    "infinite": ("/search", b'{"text":"a","k":1e999}', (400, 422)),
    "negative": ("/search", b'{"text":"a","k":-1}', 422),
    "a number of a thousand digits": ("/search", b'{"text":"a","k":' + b"9" * 1000 + b"}", (400, 422)),
    "empty list": ("/v1/embeddings", b'{"input":[]}', 422),
    "empty text": ("/v1/embeddings", b'{"input":""}', 422),
    "tokens": ("/v1/embeddings", b'{"input":[1,2,3]}', 422),
    "a million labels": (
        "/classify",
        json.dumps({"images": [base64.b64encode(PICTURE).decode()], "labels": ["x"] * 1_000_000}).encode(),
        413,
    ),
    "labels times templates": (
        "/classify",
        json.dumps({"images": ["x"], "labels": ["x"] * 900, "templates": ["{}"] * 900}).encode(),
        413,
    ),
    "too many texts": ("/v1/embeddings", json.dumps({"input": ["a"] * 257}).encode(), 413),
    "a long text": ("/v1/embeddings", json.dumps({"input": "a" * 10_000}).encode(), 413),
    "a path": ("/similarity", b'{"images":["/etc/passwd"],"texts":["a"]}', (400, 415)),
    "a file's address": ("/similarity", b'{"images":["file:///etc/passwd"],"texts":["a"]}', 400),
    "an address": ("/similarity", b'{"images":["http://169.254.169.254/latest"],"texts":["a"]}', 403),
    "an unknown field": ("/similarity", b'{"images":["x"],"texts":["a"],"path":"/etc/passwd"}', 422),
    "a list": ("/pairs", b"[]", 422),
    "nothing": ("/pairs", b"", 422),
    "larger than a request may be": ("/pairs", b" " * 9_000_000, 413),
}


@pytest.fixture(scope="module")
def model(folder):
    from hf_clip_domain.serving.model import LoadedModel

    return LoadedModel.load(folder)


@pytest.mark.parametrize("name", BODIES)
def test_hostile_bodies(model, serve, name):
    path, body, expected = BODIES[name]

    async def ask():
        async with serve(model, max_body=8_000_000) as (client, _):
            started = time.perf_counter()
            answer = await client.post(path, content=body, headers={"content-type": "application/json"})
            assert time.perf_counter() - started < 5
            assert answer.status_code in (expected if isinstance(expected, tuple) else (expected,)), answer.text
            assert set(answer.json()["error"]) == {"message", "type", "code", "param"}
            assert len(answer.content) < 1000 and "Traceback" not in answer.text and "root:" not in answer.text

    asyncio.run(ask())


def test_forms_and_media_types(model, serve):
    async def ask():
        async with serve(model) as (client, _):
            cases = [
                ({"content": b"a=b", "headers": {"content-type": "application/x-www-form-urlencoded"}}, 415),
                ({"content": b"{}", "headers": {"content-type": "text/plain"}}, 415),
                ({"content": b"{}", "headers": {"content-type": "multipart/form-data"}}, 400),
                ({"content": b"--x\r\nbroken", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 422),
                ({"files": [("images", ("a", b"x"))] * 2500}, 400),
                ({"data": {"texts": ["a\0"]}, "files": [("images", ("a", PICTURE))]}, 422),
            ]
            for request, status in cases:
                answer = await client.post("/similarity", **request)
                assert answer.status_code == status, (request, answer.text)
            assert (await client.get("/similarity")).status_code == 405
            assert (await client.get("/../etc/passwd")).status_code == 404
            odd = await client.get("/healthz", headers={"x-request-id": "a b\"'<script>"})
            assert "script" not in odd.headers["x-request-id"]
            assert (await client.get("/healthz", headers={"x-request-id": "mine-1"})).headers[
                "x-request-id"
            ] == "mine-1"

    asyncio.run(ask())


def test_a_failure_inside_tells_nothing_outward_and_all_to_the_log(folder, serve, caplog):
    async def ask():
        async with serve(folder) as (client, service):
            service.models.current.token_ids = lambda texts: 1 / 0
            answer = await client.post("/v1/embeddings", json={"input": "secret words"})
            assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error"
            assert "division" not in answer.text and answer.headers["x-request-id"]
            (record,) = [record for record in caplog.records if record.exc_info]
            assert record.request_id == answer.headers["x-request-id"]
            from hf_clip_domain.serving.json_log import JsonFormatter

            line = json.loads(JsonFormatter().format(record))
            assert "ZeroDivisionError" in line["trace"] and "secret words" not in json.dumps(line)
            assert line["endpoint"] == "/v1/embeddings" and line["status"] == 500 and line["ms"] > 0

    asyncio.run(ask())
