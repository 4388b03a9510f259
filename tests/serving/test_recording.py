"""What a server that is asked writes for the monitor: each endpoint's share, a file a model, and never at a request's cost."""

import asyncio
import json
import os
import re
import resource
import signal
import time

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.fingerprint import fingerprint
from hf_clip_domain.ops.drift.making import identity
from hf_clip_domain.ops.drift.windows import pooled, read_windows
from hf_clip_domain.serving import recording
from hf_clip_domain.serving.app import create_app
from hf_clip_domain.serving.model import LoadedModel
from hf_clip_domain.serving.quality import quality
from hf_clip_domain.serving.settings import Settings
from hf_clip_domain.serving.sketches import buckets, sketch
from hf_clip_domain.serving.statistics import PATTERN, RequestStatistics

from .test_server import start


def windows(statistics, model):
    embedder = ClipEmbedder.from_pretrained(model)
    return read_windows(statistics, revision=fingerprint(embedder.model), resolution=32)[0]


def test_each_endpoint_gives_what_it_has(folder, serve, tmp_path, pictures, encoded):
    """The file holds what `ClipEmbedder` gives offline for the same pictures and texts, and nothing of labels."""
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    (gallery / "one.png").write_bytes(pictures[5])
    kept, asked = tmp_path / "statistics", {}

    async def ask():
        async with serve(folder, statistics=str(kept), statistics_window=1, gallery=str(gallery)) as (client, service):

            async def post(path, **body):
                answer = await client.post(path, json=body)
                while service.recorder.recorded < len(asked) + 1:
                    await asyncio.sleep(0.005)
                asked[f"{path} {len(asked)}"] = answer
                assert answer.status_code == 200, answer.text

            await post("/v1/embeddings", input=["a b", {"image": encoded[0]}, {"text": "c"}])
            await post("/similarity", images=encoded[:2], texts=["d", "e"], mode="pairs")
            await post("/similarity", images=encoded[:1], texts=["d", "f"], mode="matrix")
            broken = {"image": "AAAA", "text": "h"}
            await post("/pairs", pairs=[{"image": encoded[3], "text": "g"}, broken])
            await post("/classify", images=encoded[4:5], labels=["x", "y"], templates=["z {}"])
            await post("/search", text="w")
            await post("/search", image=encoded[2])
            refused = await client.post("/similarity", json={"images": ["AAAA"], "texts": ["q"]})
            added = await client.post("/gallery", json={"items": [{"id": "two", "image": encoded[1]}]})
            assert refused.status_code == 415 and added.status_code == 200
            stats = (await client.get("/stats")).json()["statistics"]
            assert stats == {"recorded": 7, "lost": 0, "windows": 7}
            text = (await client.get("/metrics")).text
            assert 'statistics_requests{outcome="recorded"} 7.0' in text and "statistics_windows 7.0" in text

    asyncio.run(ask())
    names = ("mixed", "paired", "matrix", "pairs", "classified", "by_text", "by_image")
    found = dict(zip(names, windows(kept, folder), strict=True))
    embedder = ClipEmbedder.from_pretrained(folder)
    images = embedder.embed_images(pictures).numpy()

    def texts(*words):
        return sketch(embedder.embed_texts(words).numpy())

    def near(series, expected):
        """A picture embedded in another company may differ in the last bit, which rounding to a byte may show."""
        return series.shape == expected.shape and np.abs(series.astype(int) - expected).max() <= 1

    rows = {"mixed": [0], "paired": [0, 1], "matrix": [0], "pairs": [3], "classified": [4], "by_image": [2]}
    for name, places in rows.items():
        assert near(found[name].series["image_sketches"], sketch(images[places])), name
        assert found[name].series["image_sizes"].tolist() == [[120, 160]] * len(places)
    words = {"mixed": ["a b", "c"], "paired": ["d", "e"], "matrix": ["d", "f"], "pairs": ["g", "h"], "by_text": ["w"]}
    for name, said in words.items():
        assert near(found[name].series["text_sketches"], texts(*said)), name
        counted = np.zeros_like(found[name].token_counts)
        for ids in embedder.token_ids(said):
            counted[buckets(ids)] += 1
        assert np.array_equal(found[name].token_counts, counted) and found[name].texts == len(said)
    for name in ("classified", "by_image"):
        assert not len(found[name].text_vectors) and not found[name].token_counts.any()
    assert not len(found["by_text"].images)

    given = [result["score"] for result in asked["/pairs 3"].json()["results"][:1]]
    np.testing.assert_allclose(found["pairs"].series["pair_scores"], given, atol=1e-6)
    np.testing.assert_allclose(
        found["paired"].series["pair_scores"], asked["/similarity 1"].json()["similarity"], atol=1e-6
    )
    assert [name for name in names if len(found[name].pair_scores)] == ["paired", "pairs"]
    chances = np.array(asked["/classify 4"].json()["results"][0]["probabilities"])
    np.testing.assert_allclose(found["classified"].series["entropies"], [-(chances * np.log(chances)).sum()], atol=1e-5)
    np.testing.assert_allclose(
        found["by_text"].series["top_scores"], asked["/search 5"].json()["hits"][0]["score"], atol=1e-6
    )
    assert [name for name in names if len(found[name].series["top_scores"])] == ["classified", "by_text"]
    expected = quality(embedder.pixels(0, pictures[0]).numpy())
    np.testing.assert_allclose(found["mixed"].series["image_qualities"], [expected], atol=1e-5)
    assert not len(found["matrix"].qualities)  # its picture was in the cache: it was not prepared again


def test_a_swap_begins_another_file_and_requests_under_way_stay_with_their_model(folder, other_folder, serve, tmp_path):
    async def ask():
        async with serve(folder, statistics=str(tmp_path), cache=0) as (client, service):
            service.models._load = lambda version: LoadedModel.load(other_folder)
            first = service.models.current
            for _ in range(3):
                assert (await client.post("/v1/embeddings", json={"input": "a"})).status_code == 200
            assert (await client.post("/admin/reload")).status_code == 200
            for _ in range(2):
                assert (await client.post("/v1/embeddings", json={"input": "a"})).status_code == 200
            late = first.encode_texts(first.token_ids(["b"]))
            service.recorder.record(first, ["b"], text_embeds=late)  # begun before the swap
            assert (await client.post("/admin/rollback")).status_code == 200
            assert (await client.post("/v1/embeddings", json={"input": "a"})).status_code == 200

    asyncio.run(ask())
    assert [window.requests for window in windows(tmp_path, folder)] == [
        3,
        2,
    ]  # the late one, and that after the rollback
    assert [window.requests for window in windows(tmp_path, other_folder)] == [2]
    assert identity(ClipEmbedder.from_pretrained(folder))["resolution"] == 32  # what a reference is made with


def test_a_disk_that_fails_costs_windows_and_no_request(folder, serve, tmp_path, caplog):
    kept = tmp_path / "statistics"

    async def ask():
        async with serve(folder, statistics=str(kept), statistics_window=2) as (client, service):

            async def two(so_far):
                for _ in range(2):
                    assert (await client.post("/v1/embeddings", json={"input": "a b c"})).status_code == 200
                while service.recorder.recorded < so_far + 2:
                    await asyncio.sleep(0.005)

            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # a disk that is full after 100 bytes
            try:
                await two(0)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert service.recorder.lost == 2 and not list(kept.iterdir())
            kept.rmdir()
            kept.touch()  # a folder no more
            await two(2)
            assert service.recorder.lost == 4
            kept.unlink()
            kept.mkdir()
            await two(4)
            assert (await client.get("/stats")).json()["statistics"] == {"recorded": 6, "lost": 4, "windows": 1}

    asyncio.run(ask())
    assert caplog.text.count("2 requests are lost") == 2 and len(windows(kept, folder)) == 1


def test_what_the_thread_cannot_take_is_left_out_and_what_fails_stops_nothing(folder, serve, tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "_MOST_ROWS", 3)

    async def ask():
        async with serve(folder, statistics=str(tmp_path)) as (client, service):
            recorder, model = service.recorder, service.models.current
            recorder.record(model, [], text_embeds="no rows")
            while recorder.lost < 1:
                await asyncio.sleep(0.005)
            assert (await client.post("/v1/embeddings", json={"input": list("abcd")})).status_code == 200
            assert (await client.post("/v1/embeddings", json={"input": list("abc")})).status_code == 200
            while not recorder.recorded:
                await asyncio.sleep(0.005)
            assert recorder.stats() == {"recorded": 1, "lost": 2, "windows": 0}
            assert (await client.post("/v1/embeddings", json={"input": list("abc")})).status_code == 200

    asyncio.run(ask())
    (window,) = windows(tmp_path, folder)
    assert window.requests == 2 and window.texts == 6


def test_of_a_busy_servers_requests_an_even_share_is_drawn(folder, tmp_path, monkeypatch):
    """A thousand requests in each of five seconds; then a quiet time, of which all are taken again."""
    now = [100.0]
    monkeypatch.setattr(recording.time, "monotonic", lambda: now[0])
    recorder = recording.Recorder(tmp_path, 500, LoadedModel.load(folder))
    drawn = []
    for _ in range(5000):
        now[0] += 0.001
        if recorder.wants():
            drawn.append(now[0])
    later = [place for place in drawn if place > 101.1]  # the first second has no second before it
    assert 15 <= len(later) <= 70  # ten a second, four seconds, four deviations
    now[0] += 100
    assert all(recorder.wants() for _ in range(50))


def test_a_folder_that_cannot_be_written_is_said_at_the_start(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ClipDomainError, match="statistics: .* cannot be written"):
        create_app(Settings(model=folder, statistics=str(tmp_path / "file")))
    with pytest.raises(ClipDomainError, match="--statistics_window 0"):
        Settings(statistics_window=0)


def test_what_a_killed_process_saved_becomes_a_window_once(tmp_path):
    model = {"revision": "r", "resolution": 32}
    killed, alive = (RequestStatistics(tmp_path, **model, requests=100) for _ in range(2))
    for statistics, count in ((killed, 7), (alive, 5)):
        for row in range(count):
            statistics.record(pair_scores=[row / 10])
        statistics.save()
    killed.record(pair_scores=[0.9])  # after it was saved: what a kill costs
    assert not list(tmp_path.glob(PATTERN))
    old = time.time() - 3600
    for statistics in (killed, alive):
        os.utime(statistics._open, (old, old))
    alive.save()  # it is not of a killed process, however long it waited for its turn
    (window,) = read_windows(tmp_path, **model)[0]
    assert window.requests == 7 and len(window.pair_scores) == 7
    alive.record(pair_scores=[0.8])
    alive.close()
    found = read_windows(tmp_path, **model)[0]
    assert [one.requests for one in found] == [7, 6] and pooled(found).requests == 13
    assert not list(tmp_path.glob("open-*")) and not list(tmp_path.glob(".*"))


@pytest.mark.integration
def test_a_kill_costs_the_requests_of_a_few_seconds(folder, tmp_path):
    """The real server: what it was asked more than `SAVE_SECONDS` ago is on the disk when it is killed."""
    with start(folder, "--statistics", str(tmp_path)) as server, server.wait_ready() as client:
        for number in range(20):
            assert client.post("/v1/embeddings", json={"input": f"a {'b' * number}"}).status_code == 200
        end = time.monotonic() + 3 * recording.SAVE_SECONDS
        while not list(tmp_path.glob("open-*")) and time.monotonic() < end:
            time.sleep(0.1)
        while time.monotonic() < end and client.get("/stats").json()["statistics"]["recorded"] < 20:
            time.sleep(0.1)
        time.sleep(recording.SAVE_SECONDS + 1)
        assert client.post("/v1/embeddings", json={"input": "c"}).status_code == 200
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
    (left,) = tmp_path.glob("open-*")
    os.utime(left, (time.time() - 3600,) * 2)
    with start(folder, "--statistics", str(tmp_path)) as server, server.wait_ready() as client:
        assert client.post("/v1/embeddings", json={"input": "d"}).status_code == 200
        assert server.end(signal.SIGTERM) == 0
    before, after = windows(tmp_path, folder)
    assert before.requests == 20 and after.requests == 1


def report(revision, made, drifted=(), degraded=None):
    tests = {"image": {}, "alignment": {}}
    looks = [{"windows": ["a"], "tests": tests}, {"windows": ["a", "b"], "tests": tests}]
    feedback = None if degraded is None else {"degraded": degraded}
    content = {"drift": bool(drifted), "drifted": list(drifted), "reference": {"revision": revision}}
    return json.dumps({**content, "looks": looks, "made": made, "feedback": feedback})


def test_the_monitors_verdict_is_shown_and_what_does_not_hold_is_said(folder, other_folder, serve, tmp_path):
    file = tmp_path / "drift.json"

    async def ask():
        async with serve(folder) as (client, _):
            assert (await client.get("/stats")).json()["drift"] is None
        async with serve(folder, drift=str(tmp_path)) as (client, service):
            mine = service.models.current.weights

            async def seen():
                shown = (await client.get("/stats")).json()["drift"]
                families = text_string_to_metric_families((await client.get("/metrics")).text)
                found = {family.name.removeprefix("hf_clip_domain_drift_"): family.samples for family in families}
                (status,) = (s.labels["status"] for s in found["status"] if s.value == 1)
                assert status == shown["status"]
                detected = {sample.labels["test"]: sample.value for sample in found.get("detected", [])}
                return shown, detected, found

            assert (await seen())[0]["status"] == "missing"
            file.write_text(report(mine, time.time()))
            shown, detected, found = await seen()
            assert shown["status"] == "ok" and shown["windows"] == 1 and "drifted" not in shown
            assert detected == {"image": 0, "alignment": 0}
            assert abs(found["last_check_timestamp_seconds"][0].value - time.time()) < 60
            assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", shown["checked"])

            file.write_text(report(mine, time.time(), ["image"]))
            shown, detected, _ = await seen()
            assert (shown["status"], shown["drifted"]) == ("drift", "image")
            assert detected == {"image": 1, "alignment": 0}
            file.write_text(report(mine, time.time(), degraded=True))
            assert (await seen())[0]["drifted"] == "feedback"
            file.write_text(report(mine, time.time() - 90_000, ["image"]))
            assert (await seen())[0]["status"] == "stale"
            for damaged in ("{", "[]", "{}", report(mine, "long ago")):
                file.write_text(damaged)
                assert (await seen())[0]["status"] == "unreadable"

            file.write_text(report(mine, time.time(), ["image"]))
            service.models._load = lambda version: LoadedModel.load(other_folder)
            assert (await client.post("/admin/reload")).status_code == 200
            shown, detected, _ = await seen()
            assert shown["status"] == "of another model" and not detected  # its alarms are not this model's

    asyncio.run(ask())
