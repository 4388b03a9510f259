"""The client and the real application: what comes back equals the embedder offline."""

import asyncio

import httpx
import numpy as np
import pytest

from hf_clip_domain.data.samples import load_samples
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.serving import AsyncClient, RefusedError, UnauthorizedError
from hf_clip_domain.serving.app import create_app
from hf_clip_domain.serving.auth import new_key
from hf_clip_domain.serving.model import LoadedModel
from hf_clip_domain.serving.settings import Settings


@pytest.fixture(scope="module")
def embedder():
    return ClipEmbedder.from_pretrained("starter")


@pytest.fixture
def asked(embedder):
    """Runs `use(client)` against an application with these settings."""

    def run(use, api_key=None, **settings):
        app = create_app(Settings(**settings), LoadedModel(embedder, source="starter"))

        async def inside():
            async with app.router.lifespan_context(app):
                transport = httpx.ASGITransport(app)
                async with AsyncClient("http://server", transport=transport, api_key=api_key, batch_size=3) as client:
                    return await use(client)

        return asyncio.run(inside())

    return run


def pictures(count):
    return [
        row["image"]["bytes"] for row in load_samples("scientific", seed=0, test=count, train=0, validation=0)["test"]
    ]


def test_every_method_equals_the_embedder(asked, embedder):
    images, texts = pictures(5), ["a bar chart", "a galaxy", "a line plot of two curves", "ein Bild"]

    async def use(client):
        found = {
            "images": await client.embed_images(images),
            "texts": await client.embed_texts(texts),
            "similarity": await client.similarity(images, texts),
            "classify": await client.classify(images, texts[:2], ["a photo of {}."]),
            "pairs": await client.pairs([*images[:2], b"no picture"], texts[:3]),
            "ready": await client.ready(),
        }
        with pytest.raises(RefusedError) as caught:
            await client.embed_images([images[0], b"no picture"])
        return found, caught.value

    found, refused = asked(use)
    image_embeds = embedder.embed_images(images, progress=False).numpy()
    text_embeds = embedder.embed_texts(texts, progress=False).numpy()
    scores = image_embeds @ text_embeds.T
    assert np.abs(found["images"] - image_embeds).max() < 1e-5 and np.abs(found["texts"] - text_embeds).max() < 1e-5
    assert np.abs(found["similarity"] - scores).max() < 1e-5
    expected = embedder.classify(images, texts[:2], ["a photo of {}."]).numpy()
    assert np.abs(found["classify"].probabilities - expected).max() < 1e-4
    assert [pair.score for pair in found["pairs"][:2]] == pytest.approx(scores.diagonal()[:2].tolist(), abs=1e-5)
    assert found["pairs"][2].score is None and found["pairs"][2].error
    assert found["ready"].ready and found["ready"].model
    assert refused.status == 415 and "input[1]" in refused.param


def test_a_key_is_sent_and_a_wrong_one_is_told(asked, tmp_path):
    key, line = new_key("someone")
    (tmp_path / "keys").write_text(line)

    async def use(client):
        return (await client.embed_texts(["a"])).shape

    keys = str(tmp_path / "keys")
    assert asked(use, api_key=key, api_keys=keys)[0] == 1
    with pytest.raises(UnauthorizedError, match="key is needed"):
        asked(use, api_key="guess", api_keys=keys)
