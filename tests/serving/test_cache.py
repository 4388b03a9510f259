"""An embedding is found again by its own content and model, and by no other's; within its bytes; after a kill."""

import asyncio
import io
import sqlite3

import numpy as np
import pytest
from PIL import Image

from hf_clip_domain.corpus.identity import model_identity
from hf_clip_domain.data import transforms
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.cache import EmbeddingCache, MemoryCache, key_of
from hf_clip_domain.serving.disk_cache import DiskCache
from hf_clip_domain.serving.kernels import choose_kernels
from hf_clip_domain.serving.model import IMAGE, TEXT, LoadedModel
from hf_clip_domain.serving.settings import Settings


def row(number, width=64):
    return np.full(width, number, dtype=np.float32)


def test_memory_keeps_the_most_recently_used_within_its_bytes():
    cache = MemoryCache(10 * (64 * 4 + 400))
    for number in range(10):
        cache.put(b"%d" % number, row(number))
    assert cache.get(b"0")[0] == 0  # used: the next to go is 1
    cache.put(b"new", row(10))
    assert len(cache) == 10 and cache.bytes <= cache.capacity
    assert cache.get(b"1") is None and cache.get(b"0")[0] == 0
    cache.put(b"0", row(7))
    assert cache.get(b"0")[0] == 7 and len(cache) == 10 and cache.bytes <= cache.capacity
    cache.put(b"huge", row(0, 10_000))
    assert cache.get(b"huge") is None and len(cache) == 10


def test_a_row_is_kept_as_it_was():
    cache, batch = MemoryCache(10_000), np.ones((4, 8), dtype=np.float32)
    cache.put(b"key", batch[1])
    batch[:] = 0
    assert cache.get(b"key").sum() == 8 and cache.get(b"key").base is None
    with pytest.raises(ValueError):
        cache.get(b"key")[0] = 2


def test_keys_tell_models_kinds_and_contents_apart():
    keys = {
        key_of(model * 32, kind, content) for model in (b"a", b"b") for kind in (TEXT, IMAGE) for content in (b"", b"x")
    }
    assert len(keys) == 8


def test_disk_survives_and_drops_the_oldest(tmp_path):
    file = tmp_path / "cache" / "rows.sqlite"
    cache = DiskCache(file, capacity=1_000_000)
    for number in range(500):
        cache.put(b"%d" % number, row(number))
    cache.close()
    again = DiskCache(file, capacity=300 * (256 + 96))
    assert again.bytes == 500 * (256 + 96) and again.get(b"3")[0] == 3 and again.get(b"none") is None
    again.put(b"new", row(1))
    again.close()
    last = DiskCache(file, capacity=1_000_000)
    assert last.get(b"0") is None and last.get(b"new")[0] == 1 and last.bytes <= 300 * (256 + 96)
    last.close()


def test_a_damaged_row_is_a_miss_and_a_damaged_file_is_put_aside(tmp_path):
    file = tmp_path / "rows.sqlite"
    cache = DiskCache(file, 10_000)
    cache.put(b"key", row(1))
    cache.close()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE embeddings SET row = ?", (row(2).tobytes(),))
    cache = DiskCache(file, 10_000)
    assert cache.get(b"key") is None
    cache.close()
    file.write_bytes(b"no database at all" * 100)
    cache = DiskCache(file, 10_000)
    cache.put(b"key", row(3))
    cache.close()
    assert DiskCache(file, 10_000).get(b"key")[0] == 3 and list(tmp_path.glob("*.damaged-*"))


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipDomainError, match="--disk_cache"):
        DiskCache(tmp_path / "file" / "rows.sqlite", 100)


def test_two_models_never_share_and_a_restart_finds_its_own(folder, other_folder, serve, tmp_path, encoded):
    disk, body = str(tmp_path / "rows.sqlite"), {"input": ["a b", {"image": encoded[0]}]}

    async def ask(model):
        async with serve(model, disk_cache=disk) as (client, service):
            found = [(await client.post("/v1/embeddings", json=body)).json()["data"] for _ in range(2)]
            assert found[0] == found[1]
            return found[0], dict(service.engine.cache.hits), sum(service.engine.cache.misses.values())

    first, hits, misses = asyncio.run(ask(folder))
    assert misses == 2 and hits == {("text", "memory"): 1, ("image", "memory"): 1}
    other, _, misses = asyncio.run(ask(other_folder))
    assert misses == 2 and other != first
    again, hits, misses = asyncio.run(ask(folder))
    assert misses == 0 and again == first and hits["text", "disk"] == 1 and hits["image", "disk"] == 1


def test_two_pictures_of_one_size_are_two(folder, serve):
    def flat(colour):
        stream = io.BytesIO()
        Image.new("RGB", (64, 64), colour).save(stream, "BMP")
        return stream.getvalue()

    one, two = flat((255, 0, 0)), flat((254, 0, 0))
    assert len(one) == len(two)

    async def ask():
        async with serve(folder) as (client, service):
            form = {"files": [("images", ("a", one)), ("images", ("b", two))]}
            first = (await client.post("/v1/embeddings", **form)).json()["data"]
            assert first[0]["embedding"] != first[1]["embedding"]
            assert (await client.post("/v1/embeddings", **form)).json()["data"] == first
            assert service.engine.cache.misses["image"] == 2 and service.engine.cache.hits["image", "memory"] == 2

    asyncio.run(ask())


def test_the_identity_follows_precision_and_preprocessing(folder):
    plain, same = LoadedModel.load(folder), LoadedModel.load(folder)
    same.token_ids(["a"])  # leaves its mark in the tokenizer
    assert plain.identity == same.identity
    half = choose_kernels(LoadedModel.load(folder), Settings(precision="bf16"))
    cropped = LoadedModel.load(folder)
    cropped.embedder.processor.image_processor.do_normalize = False
    assert len({plain.identity, half.identity, cropped.identity}) == 3


def test_the_identity_follows_how_the_package_makes_pixels(folder, monkeypatch):
    def identities():
        embedder = ClipEmbedder.from_pretrained(folder, domain="general")
        return LoadedModel(embedder, source=str(folder)).identity, model_identity(embedder)["sha256"]

    before = identities()
    assert before == identities()
    monkeypatch.setattr(transforms, "_VERSION", transforms._VERSION + 1)
    assert not set(before) & set(identities())


def test_without_a_disk_a_miss_counts_once():
    cache = EmbeddingCache(1000)
    assert cache.get(b"k", TEXT) is None and cache.get_slowly(b"k", TEXT) is None
    assert cache.stats()["misses"] == 1 and cache.stats()["hits"] == 0
