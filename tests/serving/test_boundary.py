"""Bounded in bytes, time and number; and a client that has gone costs nothing more."""

import asyncio
import threading

import pytest

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.boundary import Boundary
from hf_clip_domain.serving.metrics import Metrics
from hf_clip_domain.serving.settings import MIB, Settings


@pytest.fixture
def held(serve, folder):
    """A served model whose engine waits until `gate` is set."""

    def start(**settings):
        gate = threading.Event()

        class Context:
            async def __aenter__(self):
                self.inner = serve(folder, **settings)
                client, service = await self.inner.__aenter__()
                model, encode = service.models.current, service.models.current.encode
                self.ran = []

                def wait(kind, payloads):
                    gate.wait(10)
                    self.ran.append(len(payloads))
                    return encode(kind, payloads)

                model.encode = wait
                return client, service, gate, self.ran

            async def __aexit__(self, *error):
                gate.set()
                await self.inner.__aexit__(*error)

        return Context()

    return start


def test_a_full_queue_refuses_at_once_and_answers_what_it_took(held):
    async def ask():
        async with held(queue=8, max_items=8) as (client, service, gate, _):
            body = {"input": [*"abcd"]}
            taken = [
                asyncio.create_task(client.post("/v1/embeddings", json={"input": [f"{n} a", f"{n} b"]}))
                for n in range(4)
            ]
            while service.engine.admitted["text"] < 8:
                await asyncio.sleep(0.01)
            refused = await client.post("/v1/embeddings", json=body)
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "queue_full"
            assert (await client.get("/healthz")).status_code == 200
            gate.set()
            assert [answer.status_code for answer in await asyncio.gather(*taken)] == [200] * 4
            assert service.engine.admitted["text"] == 0
            assert (await client.post("/v1/embeddings", json=body)).status_code == 200

    asyncio.run(ask())


def test_a_request_out_of_time_is_answered_and_never_run(held):
    async def ask():
        async with held() as (client, service, gate, ran):
            first = asyncio.create_task(client.post("/v1/embeddings", json={"input": "a"}))
            while not service.engine.admitted["text"]:
                await asyncio.sleep(0.01)
            late = await client.post("/v1/embeddings", json={"input": ["b", "c"]}, headers={"x-request-timeout": "0.2"})
            assert late.status_code == 504 and late.json()["error"]["type"] == "timeout_error"
            gate.set()
            assert (await first).status_code == 200
            assert (await client.post("/v1/embeddings", json={"input": "d"})).status_code == 200
            assert ran == [1, 1] and service.engine.admitted["text"] == 0
            for said in ("nan", "-1", "soon", "inf"):
                answer = await client.post("/v1/embeddings", json={"input": "a"}, headers={"x-request-timeout": said})
                assert answer.status_code == 400

    asyncio.run(ask())


def run_boundary(app, messages, **settings):
    """Statuses sent by `app` within a boundary, for a client that sends `messages` and then is silent."""

    async def main():
        boundary = Boundary(app, Settings(**settings), Metrics())
        waiting, sent = list(messages), []

        async def receive():
            if waiting:
                await asyncio.sleep(0)
                return waiting.pop(0)
            return await asyncio.Future()

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": "/", "method": "POST", "headers": []}
        await boundary(scope, receive, send)
        assert boundary.held == 0
        return [message["status"] for message in sent if message["type"] == "http.response.start"]

    return asyncio.run(main())


def test_a_client_that_hangs_up_cancels_its_work():
    state = []

    async def app(scope, receive, send):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            state.append("cancelled")
            raise

    messages = [{"type": "http.request", "body": b"x"}, {"type": "http.disconnect"}]
    assert run_boundary(app, messages) == [] and state == ["cancelled"]


def test_bodies_end_at_their_limits():
    async def app(scope, receive, send):
        raise AssertionError("never reached")

    half = {"type": "http.request", "body": bytes(600), "more_body": True}
    assert run_boundary(app, [half, half], max_body=1000, max_image=1000) == [413]
    assert run_boundary(app, [half, half], max_body=10 * MIB, max_bodies=1000) == [503]
    assert run_boundary(app, [half], timeout=0.1) == [408]  # and then silence
    assert run_boundary(app, [half, {"type": "http.disconnect"}]) == []


def test_settings_are_checked_before_anything_is_loaded():
    for wrong in (
        {"queue": 1},
        {"timeout": 0},
        {"port": 70000},
        {"precision": "int8"},
        {"cache": -1},
        {"max_batch": 0},
    ):
        with pytest.raises(ClipDomainError, match=f"--{next(iter(wrong))}"):
            Settings(**wrong)
