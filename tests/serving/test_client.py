"""The client against a server on loopback that misbehaves: what is tried again, when, and what is told."""

import asyncio
import base64
import io
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving import (
    AsyncClient,
    Client,
    OverloadedError,
    RefusedError,
    Retries,
    TimedOutError,
    UnauthorizedError,
    UnreachableError,
)
from hf_clip_domain.serving.client.retries import read_retry_after

QUICK = Retries(attempts=4, base=0.01)
BUSY = (503, {"Retry-After": "1"}, {"error": {"message": "The queue is full.", "code": "queue_full", "param": None}})
HANG_UP = "hang up"


def embeddings(texts):
    """An answer whose rows tell which text they are of, in another order than asked."""
    rows = [{"index": n, "embedding": base64.b64encode(np.array([n, len(t)], "<f4")).decode()} for n, t in texts]
    return 200, {}, {"data": rows[::-1]}


@pytest.fixture
def server():
    """Answers with the scripted responses in turn, the last one for ever; records what came."""
    script, seen, lock = [], [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            with lock:
                seen.append(SimpleNamespace(time=time.monotonic(), path=self.path, headers=self.headers, body=body))
                step = script.pop(0) if len(script) > 1 else script[0]
            step = step(body) if callable(step) else step
            if step == HANG_UP:
                return self.connection.close()
            status, headers, content = step
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    yield SimpleNamespace(address=f"http://127.0.0.1:{httpd.server_port}", script=script, seen=seen)
    httpd.shutdown()
    httpd.server_close()


def echo(body):
    return embeddings(list(enumerate(json.loads(body)["input"])))


def run(kind, server, method, *arguments, **options):
    """The same call of either client."""
    if kind is Client:
        with Client(server.address, **options) as client:
            return getattr(client, method)(*arguments)

    async def call():
        async with AsyncClient(server.address, **options) as client:
            return await getattr(client, method)(*arguments)

    return asyncio.run(call())


both = pytest.mark.parametrize("kind", [Client, AsyncClient])


@both
def test_a_busy_server_is_asked_again_after_as_long_as_it_says(server, kind):
    server.script += [BUSY, HANG_UP, echo]
    embeds = run(kind, server, "embed_texts", ["a", "bcd"], retries=QUICK, api_key="secret", timeout=7)
    assert embeds.dtype == np.float32 and embeds.tolist() == [[0, 1], [1, 3]]
    first, second, third = server.seen
    assert 1.0 <= second.time - first.time < 2.5 and third.time - second.time < 1.0
    assert first.body == second.body == third.body
    assert third.headers["authorization"] == "Bearer secret" and third.headers["x-request-timeout"] == "7"


@both
def test_attempts_are_bounded_and_the_servers_words_are_kept(server, kind):
    server.script += [(429, {}, {"error": {"message": "More than 2 requests a second.", "code": "rate_limited"}})]
    with pytest.raises(OverloadedError, match="More than 2 requests a second") as caught:
        run(kind, server, "embed_texts", ["a"], retries=QUICK)
    assert len(server.seen) == 4 and caught.value.status == 429 and caught.value.code == "rate_limited"


@both
@pytest.mark.parametrize(
    "status, error",
    [
        (422, RefusedError),
        (413, RefusedError),
        (401, UnauthorizedError),
        (403, UnauthorizedError),
        (504, TimedOutError),
    ],
)
def test_what_sending_again_would_not_mend_is_sent_once(server, kind, status, error):
    server.script += [(status, {}, {"error": {"message": "is wrong.", "code": "word", "param": "texts[1]"}})]
    with pytest.raises(error, match=r"texts\[1\]: is wrong") as caught:
        run(kind, server, "similarity", [b"x"], ["a", "b"], retries=QUICK)
    assert len(server.seen) == 1 and caught.value.param == "texts[1]"


def test_a_server_that_asks_for_too_much_patience_is_not_waited_for(server):
    server.script += [(503, {"Retry-After": "3600"}, b"<html>a proxy's page</html>")]
    with pytest.raises(OverloadedError, match="answered 503") as caught:
        run(Client, server, "embed_texts", ["a"])
    assert len(server.seen) == 1 and caught.value.retry_after == 3600


@both
def test_no_server_and_a_slow_one(server, kind):
    server.script += [lambda body: time.sleep(1.5) or echo(body)]
    with pytest.raises(TimedOutError):
        run(kind, server, "embed_texts", ["a"], timeout=0.2, retries=QUICK)
    assert len(server.seen) == 1  # it may still be at it
    nobody = SimpleNamespace(address="http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="cannot be reached"):
        run(kind, nobody, "embed_texts", ["a"], retries=QUICK)
    assert not run(kind, nobody, "ready").ready


@both
def test_long_lists_take_several_requests_and_keep_their_order(server, kind):
    server.script += [echo]
    texts = ["x" * length for length in range(1, 11)]
    embeds = run(kind, server, "embed_texts", (text for text in texts), batch_size=4)
    assert embeds[:, 1].tolist() == list(range(1, 11)) and len(server.seen) == 3


@both
def test_pictures_are_paths_bytes_or_pil_and_arrive_as_they_are(server, kind, tmp_path):
    server.script += [(200, {}, {"similarity": [[0.5], [0.25], [0.125]]})]
    picture = Image.new("RGB", (3, 2), (255, 0, 7))
    picture.save(tmp_path / "a.bmp")
    content = (tmp_path / "a.bmp").read_bytes()
    scores = run(kind, server, "similarity", [tmp_path / "a.bmp", content, picture], ["é"])
    assert scores.shape == (3, 1) and scores.dtype == np.float32
    sent = server.seen[0].body
    assert sent.count(content) == 2 and "é".encode() in sent
    png = sent[sent.index(b"\x89PNG") :]
    assert Image.open(io.BytesIO(png)).getpixel((0, 0)) == (255, 0, 7)


@both
def test_answers_become_arrays_and_dataclasses(server, kind):
    chances = [{"index": 1, "probabilities": [0.1, 0.9]}, {"index": 0, "probabilities": [0.8, 0.2]}]
    server.script += [(200, {}, {"labels": ["x", "y"], "results": chances, "calibrated": True})]
    found = run(kind, server, "classify", [b"1", b"2"], ["x", "y"])
    assert found.best == ["x", "y"] and found.calibrated and found.probabilities.shape == (2, 2)
    server.script[:] = [
        (200, {}, {"results": [{"index": 0, "score": None, "error": {"message": "not a picture."}}]}),
        (200, {}, {"hits": [{"id": "a/b", "score": 0.5, "metadata": {"year": 1}}]}),
        (503, {}, {"status": "draining", "model": {"revision": "f00"}}),
    ]
    assert run(kind, server, "pairs", [b"1"], ["x"])[0].error == "not a picture."
    assert run(kind, server, "search", "words")[0].metadata == {"year": 1}
    state = run(kind, server, "ready")
    assert not state.ready and state.status == "draining" and state.model == {"revision": "f00"}


@pytest.mark.parametrize(
    "method, arguments, told",
    [
        ("embed_texts", ["one text"], "texts is one str"),
        ("embed_texts", [[]], "texts is empty"),
        ("embed_images", [[3]], r"images\[0\] is a int"),
        ("embed_images", [["no/such/file"]], "no/such/file"),
        ("pairs", [[b"1", b"2"], ["x"]], "2 images and 1 texts"),
        ("search", [], "a text or an image"),
    ],
)
def test_a_mistake_of_the_callers_is_told_before_anything_is_sent(server, method, arguments, told):
    with pytest.raises(ClipDomainError, match=told):
        run(Client, server, method, *arguments)
    assert server.seen == []


def test_waits_grow_with_jitter_and_never_undercut_the_server():
    retries = Retries(attempts=9, base=1.0, longest=10.0)
    waits = [[retries.wait(attempt, None) for _ in range(200)] for attempt in (1, 2, 3, 6)]
    assert [max(drawn) <= limit for drawn, limit in zip(waits, (1, 2, 4, 10), strict=True)] == [True] * 4
    assert all(
        max(drawn) > 0.8 * limit and min(drawn) < 0.2 * limit for drawn, limit in zip(waits, (1, 2, 4, 10), strict=True)
    )
    assert all(3 <= retries.wait(1, 3.0) <= 4 for _ in range(100))
    assert retries.wait(9, None) is None and retries.wait(1, 11.0) is None
    assert read_retry_after({"retry-after": "1.5"}) == 1.5 and read_retry_after({"retry-after": "soon"}) is None
    assert read_retry_after({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"}) == 0


def test_the_client_needs_neither_torch_nor_the_server():
    program = (
        "import sys; from hf_clip_domain.serving import Client; Client(); "
        "print([m for m in ('torch', 'transformers', 'fastapi', 'PIL', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
