"""An export is served like the model it was made from, and is never taken for another."""

import asyncio
import base64
import shutil

import numpy as np
import pytest

from hf_clip_domain.data.samples import load_samples
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.canary import check_candidate
from hf_clip_domain.serving.kernels import choose_kernels
from hf_clip_domain.serving.model import LoadedModel
from hf_clip_domain.serving.settings import Settings
from hf_clip_domain.sharing.export import export_model

TEXTS = ["a b c", "a longer text than that", "z"]


def export(folder, output):
    pairs = load_samples("general", train=0, validation=0, test=16)["test"]
    export_model(folder, output, format="onnx", pairs=pairs, say=lambda _: None)
    return str(output)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, folder):
    return export(folder, tmp_path_factory.mktemp("export") / "onnx")


def test_a_served_export_equals_the_original_offline(serve, folder, exported, encoded):
    async def work():
        async with serve(exported) as (client, _):
            rows = []
            for asked in (TEXTS, {"image": encoded[0]}):
                answer = (await client.post("/v1/embeddings", json={"input": asked})).json()
                rows += [row["embedding"] for row in answer["data"]]
            return rows, (await client.get("/stats")).json()["model"]

    rows, described = asyncio.run(work())
    offline = ClipEmbedder.from_pretrained(folder)
    images = offline.embed_images([base64.b64decode(encoded[0])])
    expected = np.concatenate([offline.embed_texts(TEXTS).numpy(), images.numpy()])
    assert np.abs(np.array(rows) - expected).max() < 1e-4
    assert described["precision"] == "fp32" and described["kernels"][0].startswith("onnx, float32: recall within 0.00")


def test_two_exports_of_one_shape_are_two_models(tmp_path, exported, other_folder):
    model, other = LoadedModel.load(exported), LoadedModel.load(export(other_folder, tmp_path / "other"))
    assert model.identity != other.identity  # what the cache knows them by
    shutil.copytree(exported, tmp_path / "copy")
    assert LoadedModel.load(str(tmp_path / "copy")).weights == model.weights
    check_candidate(other, model)  # one may be swapped for the other


def test_an_export_computes_in_its_own_way_alone(exported):
    for settings in (Settings(precision="bf16"), Settings(compile="on")):
        with pytest.raises(ClipDomainError, match="is an export .onnx, float32."):
            choose_kernels(LoadedModel.load(exported), settings)
    assert choose_kernels(LoadedModel.load(exported), Settings(precision="auto")).precision == "fp32"
