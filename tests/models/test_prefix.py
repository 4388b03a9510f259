"""The frozen prefix of real towers: how far it reaches, and that prefix and suffix are the model's own computation."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTModel,
)

from hf_clip_domain.models.dual_encoder import features
from hf_clip_domain.models.prefix import find_frozen_prefix, vision_stages

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION = {**SIZE, "image_size": 16, "patch_size": 8}
IDS = {"vocab_size": 99, "eos_token_id": 98, "bos_token_id": 97, "pad_token_id": 0}


def make_clip(**vision):
    return CLIPModel(CLIPConfig(text_config={**SIZE, **IDS}, vision_config={**VISION, **vision}, projection_dim=24))


def make_siglip():
    return SiglipModel(SiglipConfig(text_config={**SIZE, "vocab_size": 99}, vision_config=VISION))


def make_dual(vision=None):
    text = BertModel(BertConfig(**SIZE, vocab_size=99))
    vision = vision or CLIPVisionModel(CLIPVisionConfig(**VISION))
    return VisionTextDualEncoderModel(vision_model=vision, text_model=text)


def make_peft():
    return get_peft_model(make_clip(), LoraConfig(r=2, target_modules=r"text_model.*q_proj"))


def freeze(model, count):
    model.requires_grad_(True)
    for stage in vision_stages(model)[:count]:
        for module in stage.modules:
            module.requires_grad_(False)
    return model


@pytest.mark.parametrize("make", [make_clip, make_siglip, make_dual, make_peft])
def test_suffix_after_prefix_is_the_models_own_output(make):
    torch.manual_seed(0)
    model, pixels = make().train(), torch.randn(3, 3, 16, 16)
    own = features(model.get_image_features(pixel_values=pixels))
    stages = vision_stages(model)
    assert len(stages) == (5 if make is make_siglip else 6)
    for count in range(1, len(stages) + 1):
        found = find_frozen_prefix(freeze(model, count))
        assert found.length == count and found.whole == (count == len(stages))
        kept = found.prefix(pixels)
        # Without gradients torch computes SigLIP's pooling attention by another kernel.
        error = 1e-6 if make is make_siglip and found.whole else 0
        assert not kept.requires_grad and (found.suffix(kept) - own).abs().max() <= error


def test_gradients_of_what_remains_are_the_models_own():
    torch.manual_seed(0)
    model, pixels = freeze(make_clip(), 2), torch.randn(3, 3, 16, 16)
    other = copy.deepcopy(model)
    features(model.get_image_features(pixel_values=pixels)).square().sum().backward()
    found = find_frozen_prefix(other)
    found.suffix(found.prefix(pixels)).square().sum().backward()
    for (name, one), two in zip(model.vision_model.named_parameters(), other.vision_model.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        assert one.grad is None or torch.equal(one.grad, two.grad), name


def test_the_prefix_ends_where_something_trains_or_draws():
    assert find_frozen_prefix(make_clip()) is None
    model = make_clip().requires_grad_(False)
    model.vision_model.encoder.layers[1].mlp.fc2.bias.requires_grad_(True)
    assert find_frozen_prefix(model).describe() == "the vision tower's output after its layer 1"
    dropping = make_clip(attention_dropout=0.1).requires_grad_(False)
    assert find_frozen_prefix(dropping).length == 1  # the embeddings have no attention
    adapted = get_peft_model(make_clip(), LoraConfig(r=2, target_modules=r"vision_model.*layers\.2.*q_proj"))
    assert find_frozen_prefix(adapted).length == 3  # embeddings and two layers lie before the adapter


def test_a_tower_of_another_kind_has_no_prefix():
    assert vision_stages(make_dual(ViTModel(ViTConfig(**VISION)))) == []
    assert find_frozen_prefix(torch.nn.Linear(2, 2).requires_grad_(False)) is None


def test_the_fingerprint_names_weights_and_settings_of_the_prefix_alone():
    torch.manual_seed(0)
    model = freeze(make_clip(), 3)
    first = find_frozen_prefix(model).fingerprint()
    assert find_frozen_prefix(copy.deepcopy(model)).fingerprint() == first
    assert find_frozen_prefix(freeze(copy.deepcopy(model), 2)).fingerprint() != first
    later = copy.deepcopy(model)
    later.vision_model.post_layernorm.weight.data += 1
    assert find_frozen_prefix(later).fingerprint() == first
    weight = copy.deepcopy(model)
    weight.vision_model.encoder.layers[0].mlp.fc1.weight.data[3, 5] += 1e-6
    assert find_frozen_prefix(weight).fingerprint() != first
    setting = copy.deepcopy(model)
    setting.vision_model.pre_layrnorm.eps = 1e-3
    assert find_frozen_prefix(setting).fingerprint() != first


def test_marks_change_with_every_write_and_thaw():
    model = freeze(make_clip(), 3)
    found = find_frozen_prefix(model)
    before = found.marks()
    assert found.marks() == before
    with torch.no_grad():
        model.visual_projection.weight.mul_(2)  # not of the prefix
    assert found.marks() == before
    with torch.no_grad():
        model.vision_model.encoder.layers[1].mlp.fc1.weight[0, 0] += 1
    written = found.marks()
    assert written != before
    model.vision_model.embeddings.class_embedding.requires_grad_(True)
    assert found.marks() != written
