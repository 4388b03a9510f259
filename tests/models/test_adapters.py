"""Adapters: few numbers train, plain PEFT loads them, and merging changes nothing."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.adapters import add_adapter, save_adapted
from hf_clip_domain.models.depth import describe_trained, trained
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.models.positions import stretch_text_positions, text_capacity

SIZE = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {"image_size": 32, "patch_size": 16}


def siglip():
    text = {**SIZE, "vocab_size": 4000, "projection_size": 64, "max_position_embeddings": 16}
    return SiglipModel(SiglipConfig(text_config=text, vision_config={**SIZE, **VISION}))


def dual():
    vision, text = ViTConfig(**SIZE, **VISION), BertConfig(**SIZE, vocab_size=4000)
    config = VisionTextDualEncoderConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=64)
    return VisionTextDualEncoderModel(config)


def starter():
    return load_model("starter")[0]


def disturbed(model):
    """As after training: adapters that do something, and another temperature."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
            elif parameter.requires_grad:
                parameter.add_(0.25)
    return model.eval()


def inputs(model, rows=3):
    size, words = model.config.vision_config.image_size, model.config.text_config.vocab_size
    ids = torch.randint(1, words - 2, (rows, 12), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = words - 1
    pixels = torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(2))
    return {"pixel_values": pixels, "input_ids": ids}


@torch.no_grad()
def embeddings(model):
    output = model(**inputs(model))
    return torch.cat([output.image_embeds, output.text_embeds])


def test_at_most_three_percent_of_vit_b_32_train():
    with torch.device("meta"):  # shapes alone
        model = CLIPModel(CLIPConfig())
    training, total = trained(add_adapter(model, "lora"))
    assert total > 151_000_000 and training == 4 * 276_480 + 1 and training / total < 0.03


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("towers", ["both", "vision", "text"])
def test_only_adapters_of_the_towers_and_the_temperature_train(kind, towers):
    model = add_adapter(starter(), kind, towers=towers)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    adapters = [name for name in names if "lora_" in name]
    assert [name for name in names if name not in adapters] == ["base_model.model.logit_scale"]
    sides = {name.split(".")[2].removesuffix("_model") for name in adapters}
    assert sides == ({"vision", "text"} if towers == "both" else {towers})
    assert len(adapters) == {"both": 7, "vision": 5, "text": 2}[towers] * 6 * (2 if kind == "lora" else 3)
    training, total = trained(model)
    assert 0 < training / total <= 0.03
    assert f"{training / total:.1%}" in describe_trained(model) and f"{training:,}" in describe_trained(model)


@pytest.mark.parametrize("make", [siglip, dual])
def test_other_dual_encoders_adapt_every_linear_map_of_their_layers(make):
    model = add_adapter(make(), "lora", rank=1).eval()
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert len(adapted) == 2 * 2 * 6 and all("layer" in name for name in adapted)
    free = {name for name, p in model.named_parameters() if p.requires_grad and "lora" not in name}
    assert {name.rpartition(".")[2] for name in free} == (
        {"logit_scale", "logit_bias"} if make is siglip else {"logit_scale"}
    )
    before = embeddings(make_equal(make(), model))
    assert torch.allclose(embeddings(model), before, atol=1e-6)


def make_equal(fresh, adapted):
    weights = {name.replace(".base_layer", ""): value for name, value in adapted.get_base_model().state_dict().items()}
    fresh.load_state_dict({name: value for name, value in weights.items() if "lora" not in name})
    return fresh.eval()


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_plain_peft_loads_what_is_saved_and_merging_is_the_same(tmp_path, kind):
    model = disturbed(add_adapter(starter(), kind, base_name="starter"))
    expected, scale = embeddings(model), model.get_base_model().logit_scale.item()
    assert (embeddings(starter()) - expected).abs().max() > 1e-3
    processor = load_model("starter")[1]
    merged = save_adapted(model, processor, tmp_path, "both")
    assert type(merged) is CLIPModel and (embeddings(merged) - expected).abs().max() < 1e-5

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of keys that fit nowhere, or are missing
        plain = PeftModel.from_pretrained(starter(), tmp_path / "adapter").eval()
    assert torch.equal(embeddings(plain), expected) and plain.get_base_model().logit_scale.item() == scale
    whole, report = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert (embeddings(whole) - expected).abs().max() < 1e-5 and whole.logit_scale.item() == scale
    by_name, _ = load_model(tmp_path / "adapter")
    assert (embeddings(by_name) - expected).abs().max() < 1e-5 and by_name.logit_scale.item() == scale
    assert not any("lora" in name for name, _ in by_name.named_parameters())
    size = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert size < 0.03 * (tmp_path / "model.safetensors").stat().st_size


def test_siglips_bias_belongs_to_its_adapter(tmp_path):
    model = disturbed(add_adapter(siglip(), "lora", rank=1))
    model.save_pretrained(tmp_path)
    bias, scale = (getattr(model.get_base_model(), name).item() for name in ("logit_bias", "logit_scale"))
    plain = PeftModel.from_pretrained(siglip(), tmp_path).get_base_model()
    assert plain.logit_bias.item() == bias and plain.logit_scale.item() == scale


def test_one_form_replaces_another_in_the_same_folder(tmp_path):
    processor = load_model("starter")[1]
    for form in ("adapter", "merged", "adapter"):
        model = disturbed(add_adapter(starter(), "lora", base_name="starter"))
        expected = embeddings(model)
        save_adapted(model, processor, tmp_path, form)
        assert (tmp_path / "adapter_config.json").exists() == (form == "adapter")
        assert (tmp_path / "model.safetensors").exists() == (form == "merged")
        assert (embeddings(load_model(tmp_path)[0]) - expected).abs().max() < 1e-5


def test_an_embedder_takes_the_adapters_folder_and_any_adapter_of_peft(tmp_path):
    theirs = disturbed(get_peft_model(starter(), LoraConfig(r=2, target_modules=["q_proj"])))
    theirs.save_pretrained(tmp_path)
    embedder = ClipEmbedder.from_pretrained(tmp_path)
    texts = ["a bar chart", "a galaxy"]
    expected = ClipEmbedder(theirs, embedder.processor).embed_texts(texts)
    assert (embedder.embed_texts(texts) - expected).abs().max() < 1e-5
    assert (ClipEmbedder.from_pretrained("starter").embed_texts(texts) - expected).abs().max() > 1e-4


def test_an_adapter_of_longer_captions_is_loaded_onto_as_many_positions(tmp_path):
    model, processor = load_model("starter")
    stretch_text_positions(model, processor.tokenizer, 96)
    model = disturbed(add_adapter(model, "lora", base_name="starter"))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, again = load_model(tmp_path)
    assert text_capacity(loaded) == again.tokenizer.model_max_length == 96
    assert (embeddings(loaded) - embeddings(model)).abs().max() < 1e-5


def test_an_adapter_without_its_base_says_where_to_name_it(tmp_path):
    model = add_adapter(starter(), "lora", base_name=str(tmp_path / "gone"))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ClipDomainError, match="holds an adapter of .*gone, .*name it there as base_model_name_or_path"):
        load_model(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "starter"}))
    load_model(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    assert "base_model.model.logit_scale" in load_file(weights)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ClipDomainError, match="weights are damaged or cut short"):
        load_model(tmp_path / "adapter")
