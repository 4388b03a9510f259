"""Freezing by words: exactly what a word names, and dropout with it."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.freezing import freeze

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT = {**SIZE, "vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 98, "bos_token_id": 97}
VISION = {**SIZE, "image_size": 16, "patch_size": 8}


def clip(dropout=0.0):
    torch.manual_seed(0)
    sides = ({**side, "attention_dropout": dropout} for side in (TEXT, VISION))
    text, vision = sides
    return CLIPModel(CLIPConfig(text_config={**text, "pad_token_id": 0}, vision_config=vision, projection_dim=24))


def free(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def names(model):
    return {name for name, _ in model.named_parameters()}


def is_norm(name):
    return "norm" in name or "layrnorm" in name


RULES = {
    "vision": lambda name: not name.startswith("vision_model."),
    "text": lambda name: not name.startswith("text_model."),
    "vision:2": lambda name: (
        not name.startswith(("vision_model.embeddings.", "vision_model.pre_layrnorm."))
        and not name.startswith(("vision_model.encoder.layers.0.", "vision_model.encoder.layers.1."))
    ),
    "text:0": lambda name: not name.startswith("text_model.embeddings."),
    "text:3": lambda name: not name.startswith("text_model.") or "final_layer_norm" in name,
    "vision text:1": lambda name: (
        not name.startswith(("vision_model.", "text_model.embeddings.", "text_model.encoder.layers.0."))
    ),
    "all_but_projections": lambda name: name.endswith("_projection.weight") or name == "logit_scale",
    "all_but_biases_and_norms": lambda name: name.endswith("bias") or is_norm(name) or name == "logit_scale",
}


@pytest.mark.parametrize("words", RULES)
def test_what_a_word_names_and_nothing_else_is_frozen(words):
    model = clip()
    freeze(model, words.split())
    assert free(model) == {name for name in names(model) if RULES[words](name)} != names(model)
    assert "logit_scale" in free(model)


def test_siglip_projects_by_the_heads_of_its_towers():
    text = {**SIZE, "vocab_size": 99, "max_position_embeddings": 16, "projection_size": 32}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    freeze(model, ["all_but_projections"])
    heads = {name for name in names(model) if "_model.head." in name}
    assert heads and free(model) == heads | {"logit_scale", "logit_bias"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["image"], "--freeze image: expected vision, text, vision:K"),
        (["vision:"], "--freeze vision:: expected"),
        (["vision:-1"], "expected vision"),
        (["vision:4"], "the vision tower has 3 layers; give vision:3 or less"),
        (["all_but_projections", "all_but_biases_and_norms"], "nothing of the towers would train"),
    ],
)
def test_what_cannot_be_frozen_is_refused(words, message):
    with pytest.raises(ClipDomainError, match=message):
        freeze(clip(), words)


def test_a_frozen_tower_gives_the_same_features_every_time():
    """Dropout is active where something trains, and only there, although the model is in training mode."""
    pixels, ids = torch.randn(2, 3, 16, 16), torch.randint(1, 97, (2, 8))
    model = clip(dropout=0.5)
    freeze(model, ["vision"])
    image, text = [], []
    for _ in range(2):
        model.train()
        image.append(model.get_image_features(pixel_values=pixels).pooler_output)
        text.append(model.get_text_features(input_ids=ids).pooler_output)
    assert torch.equal(*image) and not torch.equal(*text)
    assert image[0].requires_grad  # by the projection


def test_dropout_stays_in_the_layers_that_train():
    model = clip(dropout=0.5).train()
    freeze(model, ["vision:2"])
    pixels = torch.randn(2, 3, 16, 16)
    hidden = [model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states for _ in range(2)]
    same = [torch.equal(one, other) for one, other in zip(*hidden, strict=True)]
    assert same == [True, True, True, False]
