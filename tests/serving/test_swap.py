"""Another model takes over between two answers: none fails, none is mixed, and a bad one never serves."""

import asyncio
import sys
import time
import types

import numpy as np
import pytest

from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.model import LoadedModel
from hf_clip_domain.serving.registry import find_version, pinned, resolve
from hf_clip_domain.serving.watch import follow


def embedding(answer):
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["data"][0]["embedding"])


def loads(service, folder):
    """What the server's name means from now on."""
    service.models._load = lambda version: LoadedModel(
        ClipEmbedder.from_pretrained(folder), source=folder, version=version
    )


def test_a_swap_under_load_fails_nothing_and_every_answer_is_one_models(folder, other_folder, serve):
    old, new = (ClipEmbedder.from_pretrained(name).embed_texts(["a b"])[0].numpy() for name in (folder, other_folder))

    async def ask():
        async with serve(folder, cache=0) as (client, service):
            loads(service, other_folder)
            found, going = [], True

            async def load():
                while going:
                    found.append(embedding(await client.post("/v1/embeddings", json={"input": "a b"})))

            clients = [asyncio.create_task(load()) for _ in range(8)]
            await asyncio.sleep(0.2)
            assert (await client.post("/admin/reload")).status_code == 200
            after = embedding(await client.post("/v1/embeddings", json={"input": "a b"}))
            await asyncio.sleep(0.1)
            back = await client.post("/admin/rollback")
            going = False
            await asyncio.gather(*clients)
            which = [int(np.abs(row - new).max() < 1e-4) - int(np.abs(row - old).max() < 1e-4) for row in found]
            assert set(which) == {-1, 1}  # each answer is wholly the one's or the other's
            assert np.abs(after - new).max() < 1e-4 and back.status_code == 200
            assert np.abs(embedding(await client.post("/v1/embeddings", json={"input": "a b"})) - old).max() < 1e-4

    asyncio.run(ask())


def test_a_model_that_fails_its_checks_never_serves(folder, narrow_folder, other_folder, serve):
    async def ask():
        async with serve(folder) as (client, service):
            before = service.models.current
            assert (await client.post("/admin/rollback")).status_code == 409
            loads(service, narrow_folder)
            refused = await client.post("/admin/reload")
            assert refused.status_code == 409 and "8 dimensions" in refused.json()["error"]["message"]

            def broken(version):
                model = LoadedModel.load(other_folder)
                model.embedder.model.text_projection.weight.data.fill_(float("nan"))
                return model

            service.models._load = broken
            refused = await client.post("/admin/reload")
            assert refused.status_code == 409 and "not finite" in refused.json()["error"]["message"]
            loads(service, "/no/such/folder")
            assert (await client.post("/admin/reload")).status_code == 409
            assert service.models.current is before and service.models.previous is None
            assert (await client.post("/v1/embeddings", json={"input": "a"})).status_code == 200
            assert 'reloads_total{outcome="refused"} 3.0' in (await client.get("/metrics")).text

    asyncio.run(ask())


def test_a_reload_may_take_longer_than_a_request_and_goes_on_without_its_client(folder, other_folder, serve):
    async def ask():
        async with serve(folder, timeout=0.3) as (client, service):
            loads(service, other_folder)
            load = service.models._load
            service.models._load = lambda version: (time.sleep(0.5), load(version))[1]
            assert (await client.post("/admin/reload")).status_code == 200
            swapped = service.models.current
            leaving = asyncio.create_task(client.post("/admin/rollback"))
            leaving_too = asyncio.create_task(client.post("/admin/reload"))
            await asyncio.sleep(0.1)
            leaving_too.cancel()
            assert (await leaving).status_code == 200 and service.models.current is not swapped
            while service.models.current.source != other_folder or service.models.current is swapped:
                await asyncio.sleep(0.01)

    asyncio.run(ask())


def test_the_gallery_follows_the_model(folder, other_folder, serve, tmp_path, pictures, encoded):
    for place, picture in enumerate(pictures[:4]):
        (tmp_path / f"{place}.png").write_bytes(picture)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    offline = {name: ClipEmbedder.from_pretrained(name) for name in (folder, other_folder)}

    async def ask():
        async with serve(folder, gallery=str(tmp_path)) as (client, service):

            async def agrees(name, files):
                expected = offline[name].similarity([pictures[place] for place in files.values()], ["b c"])[:, 0]
                answer = (await client.post("/search", json={"text": "b c", "k": 10})).json()
                found = {hit["id"]: hit["score"] for hit in answer["hits"]}
                assert found.keys() == files.keys()
                np.testing.assert_allclose([found[file] for file in files], expected, atol=1e-4)
                assert list(found.values()) == sorted(found.values(), reverse=True)

            files = {f"{place}.png": place for place in range(4)}
            await agrees(folder, files)
            nearest = (await client.post("/search", json={"image": encoded[2], "k": 1})).json()["hits"]
            assert nearest[0]["id"] == "2.png" and nearest[0]["score"] == pytest.approx(1, abs=1e-4)
            loads(service, other_folder)
            item = {"id": "new", "image": encoded[5], "metadata": {"ward": "b"}}
            reload, added = await asyncio.gather(
                client.post("/admin/reload"), client.post("/gallery", json={"items": [item]})
            )
            assert reload.status_code == added.status_code == 200
            await agrees(other_folder, {**files, "new": 5})
            replaced = await client.post("/gallery", json={"items": [{**item, "image": encoded[4]}]})
            assert replaced.json()["added"] == 1
            await agrees(other_folder, {**files, "new": 4})
            removed = await client.post("/gallery/remove", json={"ids": ["new", "0.png", "none"]})
            assert removed.json()["removed"] == 2
            del files["0.png"]
            await agrees(other_folder, files)
            assert (await client.post("/admin/rollback")).status_code == 200
            await agrees(folder, files)
            assert (await client.post("/search", json={})).status_code == 422

    asyncio.run(ask())


def test_a_gallery_has_its_limits(folder, serve, tmp_path, pictures, encoded):
    (tmp_path / "one.png").write_bytes(pictures[0])

    async def ask():
        async with serve(folder) as (client, _):
            assert (await client.post("/search", json={"text": "a"})).status_code == 404
        async with serve(folder, gallery=str(tmp_path), max_gallery=2) as (client, _):
            items = [{"id": str(place), "image": image} for place, image in enumerate(encoded[:2])]
            full = await client.post("/gallery", json={"items": items})
            assert full.status_code == 413 and full.json()["error"]["code"] == "gallery_full"
            bad = await client.post("/gallery", json={"items": [{"id": "x", "image": "AAAA"}]})
            assert bad.status_code == 415 and bad.json()["error"]["param"] == "items[0]"
            assert (await client.post("/search", json={"text": "a"})).json()["size"] == 1
        async with serve(folder, gallery=str(tmp_path), gallery_bytes=10) as (client, _):
            assert (await client.post("/gallery", json={"items": items[:1]})).status_code == 413

    asyncio.run(ask())
    with pytest.raises(ClipDomainError, match="--max_gallery"):
        (tmp_path / "two.png").write_bytes(pictures[1])

        async def start():
            async with serve(folder, gallery=str(tmp_path), max_gallery=1):
                pass

        asyncio.run(start())


def test_an_alias_that_moves_is_followed_once(folder, other_folder, serve):
    async def ask():
        async with serve(folder) as (_, service):
            models, said = service.models, ["1"]
            models.current.version, tried = "1", []

            def load(version):
                tried.append(version)
                return LoadedModel(ClipEmbedder.from_pretrained(other_folder), source="models:/clip", version=version)

            def find():
                if said[0] is None:
                    raise ClipDomainError("the registry is not there")
                return said[0]

            models._load = load
            watch = asyncio.create_task(follow(models, find, 0.01))
            await asyncio.sleep(0.1)
            assert tried == []
            said[0] = None
            await asyncio.sleep(0.05)
            said[0] = "2"
            while models.current.version != "2":
                await asyncio.sleep(0.01)
            await models.roll_back()
            await asyncio.sleep(0.1)
            assert tried == ["2"] and models.current.version == "1"  # the rollback stands
            assert not watch.done()
            watch.cancel()

    asyncio.run(ask())


@pytest.fixture
def registry(monkeypatch, folder):
    """MLflow's two calls that are used, over one model with versions 1 and 2 and an alias."""

    class Client:
        def get_model_version_by_alias(self, name, alias):
            if (name, alias) != ("clip", "prod"):
                raise RuntimeError(f"Registered model alias {alias} not found.\nmore")
            return types.SimpleNamespace(version=2)

    fetched = []
    artifacts = types.SimpleNamespace(
        download_artifacts=lambda artifact_uri, dst_path: fetched.append(artifact_uri) or folder
    )
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=Client, artifacts=artifacts))
    return fetched


def test_a_registered_model_is_found_by_alias_and_version(registry, folder):
    model = LoadedModel.load("models:/clip@prod")
    assert model.version == "2" and registry == ["models:/clip/2"] and model.source == "models:/clip@prod"
    assert resolve(pinned("models:/clip@prod", "1")).version == "1" and registry[-1] == "models:/clip/1"
    assert resolve(folder).path == folder and pinned(folder, None) == folder
    with pytest.raises(ClipDomainError, match="alias stage not found"):
        find_version("models:/clip@stage")
    for wrong in ("models:/clip", "models:/clip@", "models:/a/b/c"):
        with pytest.raises(ClipDomainError, match="NAME@ALIAS"):
            resolve(wrong)


def test_without_mlflow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ClipDomainError, match=r"hf-clip-domain\[mlflow\]"):
        resolve("models:/clip@prod")
