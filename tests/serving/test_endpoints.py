"""What is served is what `ClipEmbedder` gives offline, however it was asked for and whoever else asked."""

import asyncio
import base64

import numpy as np
import pytest

from hf_clip_domain.domains import load_domain
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.serving.model import LoadedModel

TEXTS = ["a", "a long text of many words that fills the tower to its end", "two words", "b c d"]


def rows(response):
    assert response.status_code == 200, response.text
    return np.array([item["embedding"] for item in response.json()["data"]])


def test_embeddings_are_those_of_the_embedder_alone_and_in_company(folder, serve, pictures, encoded):
    offline = ClipEmbedder.from_pretrained(folder)
    texts, images = offline.embed_texts(TEXTS).numpy(), offline.embed_images(pictures).numpy()

    async def ask():
        async with serve(folder, cache=0) as (client, service):
            mixed = [
                TEXTS[0],
                {"image": encoded[0]},
                {"text": TEXTS[1]},
                {"image": f"data:image/png;base64,{encoded[1]}"},
            ]
            found = rows(await client.post("/v1/embeddings", json={"input": mixed}))
            expected = np.stack([texts[0], images[0], texts[1], images[1]])
            np.testing.assert_allclose(found, expected, atol=1e-4)
            alone = rows(await client.post("/v1/embeddings", json={"input": TEXTS[0]}))
            np.testing.assert_allclose(alone[0], texts[0], atol=1e-4)
            requests = [{"input": text} for text in TEXTS * 8] + [{"input": {"image": image}} for image in encoded]
            answers = await asyncio.gather(*(client.post("/v1/embeddings", json=body) for body in requests))
            together = np.concatenate([rows(answer) for answer in answers])
            np.testing.assert_allclose(together, np.concatenate([*[texts] * 8, images]), atol=1e-4)
            assert service.metrics.recent()["batch_size"]["text"]["largest"] > 1  # there was company

    asyncio.run(ask())


def test_base64_holds_the_same_numbers_and_the_clients_fields_are_taken(folder, serve):
    async def ask():
        async with serve(folder) as (client, _):
            plain = rows(await client.post("/v1/embeddings", json={"input": "a b", "user": "x", "unknown": 1}))
            asked = {"input": "a b", "encoding_format": "base64", "model": "clip", "dimensions": 16}
            packed = (await client.post("/v1/embeddings", json=asked)).json()["data"][0]["embedding"]
            np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), plain[0].astype(np.float32))
            assert (await client.post("/v1/embeddings", json={"input": "a", "dimensions": 8})).status_code == 400
            assert (await client.post("/v1/embeddings", json={"input": "a", "model": "gpt"})).status_code == 404

    asyncio.run(ask())


def test_similarity_pairs_and_classes_are_the_embedders(folder, serve, pictures, encoded):
    embedder = ClipEmbedder.from_pretrained(folder, logit_scale=20.0, domain="medical")
    labels, templates = ["a", "b c"], ["x of {}", "{}"]

    async def ask():
        async with serve(LoadedModel(embedder, source=folder), name="clip") as (client, _):
            body = {"images": encoded[:3], "texts": TEXTS[:3]}
            matrix = (await client.post("/similarity", json=body)).json()["similarity"]
            np.testing.assert_allclose(matrix, embedder.similarity(pictures[:3], TEXTS[:3]), atol=1e-4)
            pairs = (await client.post("/similarity", json={**body, "mode": "pairs"})).json()["similarity"]
            np.testing.assert_allclose(pairs, np.diagonal(matrix), atol=1e-6)
            assert (await client.post("/similarity", json={**body, "texts": ["a"], "mode": "pairs"})).status_code == 422
            answer = await client.post("/classify", json={"images": encoded, "labels": labels, "templates": templates})
            chances = [result["probabilities"] for result in answer.json()["results"]]
            np.testing.assert_allclose(chances, embedder.classify(pictures, labels, templates), atol=1e-4)
            assert answer.json()["calibrated"]
            classes = load_domain("medical").classes
            answer = (await client.post("/classify", json={"images": encoded[:1]})).json()
            assert answer["labels"] == list(classes) and answer["results"][0]["label"] in classes
            expected = embedder.classify(pictures[:1], classes)
            np.testing.assert_allclose(answer["results"][0]["probabilities"], expected[0], atol=1e-4)

    asyncio.run(ask())


def test_a_bad_member_of_a_pair_fails_alone_with_its_reason(folder, serve, encoded):
    async def ask():
        async with serve(folder) as (client, _):
            images = [encoded[0], "%%%", encoded[1][:200], base64.b64encode(b"plain words").decode(), encoded[2]]
            body = {"pairs": [{"image": image, "text": "a"} for image in images]}
            results = (await client.post("/pairs", json=body)).json()["results"]
            codes = [result["error"] and result["error"]["code"] for result in results]
            assert codes == [None, "bad_base64", "damaged_picture", "unsupported_picture", None]
            assert [result["score"] is None for result in results] == [False, True, True, True, False]
            assert results[1]["error"]["param"] == "pairs[1].image"
            expected = await client.post("/similarity", json={"images": [encoded[2]], "texts": ["a"]})
            assert results[4]["score"] == pytest.approx(expected.json()["similarity"][0][0], abs=1e-6)
            whole = await client.post("/similarity", json={"images": images[:2], "texts": ["a"]})
            assert whole.status_code == 400 and whole.json()["error"]["param"] == "images[1]"

    asyncio.run(ask())


def test_a_form_says_the_same_as_json(folder, serve, pictures, encoded):
    files = [("images", (f"{place}.png", picture)) for place, picture in enumerate(pictures[:2])]
    cases = {
        "/v1/embeddings": ({"input": ["a", "b"]}, {"input": ["a", "b", *({"image": image} for image in encoded[:2])]}),
        "/similarity": ({"texts": ["a", "b"], "mode": "pairs"},) * 2,
        "/pairs": (
            {"texts": ["a", "b"]},
            {"pairs": [{"image": i, "text": t} for i, t in zip(encoded, "ab", strict=False)]},
        ),
        "/classify": ({"labels": ["a", "b"], "templates": ["{}"]},) * 2,
    }

    async def ask():
        async with serve(folder) as (client, _):
            for path, (form, body) in cases.items():
                if path in ("/similarity", "/classify"):
                    body = {**body, "images": encoded[:2]}
                by_form, by_json = await client.post(path, data=form, files=files), await client.post(path, json=body)
                assert by_form.status_code == 200, by_form.text
                assert by_form.content == by_json.content

    asyncio.run(ask())


def test_every_example_of_the_description_is_answered(folder, serve, tmp_path, pictures):
    (tmp_path / "one.png").write_bytes(pictures[0])

    async def ask():
        async with serve(folder, gallery=str(tmp_path)) as (client, _):
            paths = (await client.get("/openapi.json")).json()["paths"]
            examples = [
                (path, example["value"])
                for path, operations in paths.items()
                for example in operations.get("post", {})
                .get("requestBody", {})
                .get("content", {})
                .get("application/json", {})
                .get("examples", {})
                .values()
            ]
            assert {path for path, _ in examples} >= {"/v1/embeddings", "/similarity", "/pairs", "/classify", "/search"}
            for path, body in examples:
                answer = await client.post(path, json=body)
                assert answer.status_code == (400 if "version" in body else 200), (path, answer.text)

    asyncio.run(ask())


def test_probes_metrics_and_stats_say_how_it_goes(folder, serve):
    async def ask():
        async with serve(folder) as (client, service):
            for _ in range(2):
                await client.post("/v1/embeddings", json={"input": "a"})
            await client.get("/not-there/at-all")
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            ready = (await client.get("/readyz")).json()
            assert ready["status"] == "ready" and ready["model"]["dimensions"] == 16 and ready["memory_bytes"] > 0
            page = await client.get("/")
            assert page.status_code == 200 and "connect-src 'self'" in page.headers["content-security-policy"]
            metrics = (await client.get("/metrics")).text
            assert 'hf_clip_domain_requests_total{endpoint="/v1/embeddings",status="200"} 2.0' in metrics
            assert 'hf_clip_domain_requests_total{endpoint="other",status="404"} 1.0' in metrics
            assert 'hf_clip_domain_cache_hits{where="text_memory"} 1.0' in metrics and "not-there" not in metrics
            stats = (await client.get("/stats")).json()
            assert stats["cache"]["hits"] == 1 and stats["cache"]["misses"] == 1 and stats["batch_size"]["text"]
            assert set(stats["latency_ms"]["/v1/embeddings"]) == {"p50", "p90", "p99"}
            assert stats["queue"] == {"text": 0, "image": 0, "capacity": 1024} and stats["requests_per_second"] > 0
            service.draining = True
            drained = await client.get("/readyz")
            assert drained.status_code == 503 and drained.headers["connection"] == "close"

    asyncio.run(ask())
