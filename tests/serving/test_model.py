"""Other architectures, and lengths that save a CPU work, give the embedder's numbers too."""

import numpy as np
import pytest
import torch
from transformers import CLIPProcessor, SiglipConfig, SiglipImageProcessor, SiglipModel

from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.serving.canary import check_candidate
from hf_clip_domain.serving.model import LoadedModel

TEXTS = ["a", "b c d", "a long text of many words", "two words"]


@pytest.fixture
def siglip(folder):
    processor = CLIPProcessor.from_pretrained(folder)
    processor.image_processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**size, "vocab_size": 60, "max_position_embeddings": 40, "projection_size": 32},
        vision_config={**size, "image_size": 32, "patch_size": 16},
    )
    return ClipEmbedder(SiglipModel(config).eval(), processor)


def test_siglip_is_padded_to_its_full_length(siglip, pictures):
    model = LoadedModel(siglip, source="siglip")
    ids = model.token_ids(TEXTS)
    assert {model.padded_length(row) for row in ids} == {40}
    np.testing.assert_allclose(model.encode_texts(ids), siglip.embed_texts(TEXTS), atol=1e-5)
    pixels = [model.pixels(picture) for picture in pictures]
    np.testing.assert_allclose(model.encode_images(pixels), siglip.embed_images(pictures), atol=1e-5)
    check_candidate(model, None)


def test_a_cpu_pads_to_the_longest_of_the_batch_alone(folder):
    model = LoadedModel.load(folder)
    seen, plain = [], model._text_features
    model._text_features = lambda **inputs: seen.append(tuple(inputs["input_ids"].shape)) or plain(**inputs)
    ids = model.token_ids(TEXTS)
    together = model.encode_texts(ids)
    assert seen == [(4, max(map(len, ids)))] and model.padded_length(ids[0]) == len(ids[0]) == 3
    expected = ClipEmbedder.from_pretrained(folder).embed_texts(TEXTS)
    np.testing.assert_allclose(together, expected, atol=1e-5)


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_lengths_are_kept_where_the_similarity_wants_them(folder, similarity):
    embedder = ClipEmbedder.from_pretrained(folder, similarity=similarity)
    model = LoadedModel(embedder, source=folder)
    rows = model.encode_texts(model.token_ids(TEXTS))
    np.testing.assert_allclose(rows, embedder.embed_texts(TEXTS), rtol=1e-4, atol=1e-5)
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() > 0.01


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "bilinear"])
def test_the_index_ranks_as_the_similarity_does(folder, similarity):
    from hf_clip_domain.serving.index import Index
    from hf_clip_domain.similarity import build_similarity

    function = build_similarity(similarity)
    if similarity == "bilinear":
        function.fit(16)
        torch.nn.init.normal_(function.weight)
    model = LoadedModel(ClipEmbedder.from_pretrained(folder, similarity=function), source=folder)
    rows = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    rows = torch.nn.functional.normalize(rows, dim=-1) if model.normalised else rows
    query, gallery, index = rows[0], rows[1:], Index(model)
    index.add(list(range(49)), gallery.numpy())
    scores = model.embedder.similarity_function(gallery, query[None])[:, 0]
    found = index.search(query.numpy(), 5, "text")
    assert [number for number, _ in found] == scores.argsort(descending=True)[:5].tolist()
    np.testing.assert_allclose([score for _, score in found], scores.sort(descending=True)[0][:5], rtol=1e-4, atol=1e-5)
