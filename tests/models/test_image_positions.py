"""Models for pictures of other sizes: bitwise the same at their own, saved so that plain from_pretrained needs no flag."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModel,
    AutoProcessor,
    BertConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2Config,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SwinConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.image_positions import accept_any_size, at_image_size, find_image_positions, image_size_of
from hf_clip_domain.models.image_sizes import image_settings
from hf_clip_domain.models.loading import load_model

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
PICTURE = {"image_size": 32, "patch_size": 8}


class Processor:
    """What holds an image processor and a tokenizer; a real one needs files."""

    def __init__(self, image_processor):
        self.image_processor, self.tokenizer = image_processor, object()


def clip_processor(shortest_edge=32):
    return Processor(CLIPImageProcessor(size={"shortest_edge": shortest_edge}, crop_size={"height": 32, "width": 32}))


def pair(vision_config):
    text = BertConfig(**SIZE, vocab_size=20, max_position_embeddings=24)
    config = VisionTextDualEncoderConfig(
        vision_config=vision_config.to_dict(), text_config=text.to_dict(), projection_dim=16
    )
    return VisionTextDualEncoderModel(config)


def siglip():
    text = {**SIZE, "vocab_size": 20, "max_position_embeddings": 24, "projection_size": 32}
    return SiglipModel(SiglipConfig(text_config=text, vision_config={**SIZE, **PICTURE}))


MODELS = {
    "siglip": siglip,
    "vit": lambda: pair(ViTConfig(**SIZE, **PICTURE)),
    "clip tower": lambda: pair(CLIPVisionConfig(**SIZE, **PICTURE)),
    "dinov2": lambda: pair(Dinov2Config(**SIZE, **PICTURE)),
}


def make(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    find_image_positions(model).table.data.normal_()
    images = SiglipImageProcessor(size={"height": 32, "width": 32})
    return model, Processor(images) if name == "siglip" else clip_processor()


def embed(model, size, n=2):
    pixels = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.get_image_features(pixel_values=pixels).pooler_output


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_tower_takes_another_size_and_reloads_without_flags(tmp_path, name):
    model, processor = make(name)
    own, own_processor = at_image_size(model, processor, 32)
    assert torch.equal(embed(own, 32), embed(model, 32)) and image_settings(own_processor)[0] == 32
    for size in (24, 48):
        other, its_processor = at_image_size(model, processor, size)
        assert image_size_of(other) == image_settings(its_processor)[0] == size
        other.save_pretrained(tmp_path / str(size))
        again = AutoModel.from_pretrained(tmp_path / str(size)).eval()
        assert type(again) is type(model) and torch.equal(embed(again, size), embed(other, size))
        # Everything but the table is the very same tensor, and the original is as it was.
        shared = {id(tensor) for tensor in model.parameters()}
        assert sum(id(tensor) not in shared for tensor in other.parameters()) == 1
        assert image_size_of(model) == image_settings(processor)[0] == find_image_positions(model).size == 32
        # The same on the fly, without a flag.
        flexible = copy.deepcopy(model)
        accept_any_size(flexible)
        assert torch.equal(embed(flexible, 32), embed(model, 32))
        assert torch.equal(embed(flexible, size), embed(other, size))


def test_a_clip_model_at_160_is_what_plain_from_pretrained_loads(clip_folder, tmp_path):
    model, processor = load_model(clip_folder())
    large, its_processor = at_image_size(model, processor, 160)
    large.save_pretrained(tmp_path / "large")
    its_processor.save_pretrained(tmp_path / "large")
    again, again_processor = (
        CLIPModel.from_pretrained(tmp_path / "large"),
        CLIPProcessor.from_pretrained(tmp_path / "large"),
    )
    assert torch.equal(embed(again, 160), embed(large, 160))
    assert image_settings(again_processor) == image_settings(its_processor)
    assert image_settings(AutoProcessor.from_pretrained(tmp_path / "large"))[0] == 160


@pytest.mark.parametrize("size", [8, 24, 48, 64])
def test_the_table_is_interpolated_bicubically_and_without_aliasing_when_shrunk(size):
    model, _ = make("vit")
    positions = find_image_positions(model)
    grid = positions.table[1:].view(4, 4, 32).permute(2, 0, 1)[None]
    expected = F.interpolate(grid, size=(size // 8, size // 8), mode="bicubic", antialias=size < 32)
    got = positions.at(size // 8)
    assert torch.equal(got[0], positions.table[0])  # the class token's
    torch.testing.assert_close(got[1:], expected[0].flatten(1).T, atol=1e-5, rtol=1e-5)


def test_nothing_is_drawn_and_a_model_that_takes_any_size_is_copied_as_such(clip_folder):
    model, processor = load_model(clip_folder())
    accept_any_size(model)
    state = torch.get_rng_state()
    large, _ = at_image_size(model, processor, 64)
    assert torch.equal(torch.get_rng_state(), state)
    find_image_positions(large).table.data.zero_()
    assert not torch.equal(embed(large, 48), embed(model, 48)), "the copy uses the original's table"


def test_the_native_table_learns_from_pictures_of_other_sizes():
    model, _ = make("vit")
    accept_any_size(model)
    pixels = torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):  # which must not make the table coarse
        model.get_image_features(pixel_values=pixels).pooler_output.sum().backward()
    gradient = find_image_positions(model).module.position_embeddings.grad
    assert gradient.shape == (1, 17, 32) and (gradient[0, 1:].abs().sum(dim=1) > 0).all()


def test_up_and_down_again_leaves_a_trained_table_nearly_as_it_was():
    """A run whose last size is above the model's own trains at that one by shrinking the enlarged table."""
    model, processor = load_model("starter")
    table = find_image_positions(model).table
    large, _ = at_image_size(model, processor, 224)
    back = find_image_positions(large).at(8)
    assert (back - table).norm() < 0.05 * table.norm()


def test_a_larger_resize_before_the_crop_keeps_its_proportion():
    model, _ = make("vit")
    _, processor = at_image_size(model, clip_processor(shortest_edge=36), 64)
    assert processor.image_processor.size["shortest_edge"] == 72
    assert processor.image_processor.crop_size["height"] == processor.image_processor.crop_size["width"] == 64


def test_a_size_that_is_no_multiple_is_refused_with_the_nearest_ones():
    model, processor = make("vit")
    for size, near in ((50, "take 48 or 56"), (3, "take 8 or 16"), (0, "take 8 or 16")):
        with pytest.raises(ClipDomainError, match=f"pictures of {size} pixels .* patches of 8: {near}"):
            at_image_size(model, processor, size)
    accept_any_size(model)
    with pytest.raises(ClipDomainError, match="squares of whole patches of 8"):
        model.get_image_features(pixel_values=torch.zeros(1, 3, 16, 24))


def test_a_convolutional_tower_takes_any_size_as_it_is():
    torch.manual_seed(0)
    config = ConvNextConfig(hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], image_size=32, hidden_size=64)
    model = pair(config).eval()
    assert find_image_positions(model) is None
    accept_any_size(model)
    large, processor = at_image_size(model, clip_processor(), 65)
    assert image_size_of(large) == image_settings(processor)[0] == 65 and image_size_of(model) == 32
    assert embed(large, 65).isfinite().all()


def test_other_kinds_of_positions_are_refused():
    config = SwinConfig(embed_dim=16, depths=[1], num_heads=[2], window_size=4, image_size=32, patch_size=8)
    with pytest.raises(ClipDomainError, match="SwinModel keeps its positions in a way .* its own 32 pixels"):
        at_image_size(pair(config), clip_processor(), 64)
    with pytest.raises(ClipDomainError, match="Linear has no vision_model"):
        at_image_size(nn.Linear(2, 2), clip_processor(), 64)
