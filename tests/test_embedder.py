import io

import numpy as np
import pytest
import torch
from PIL import Image
from small_clip import LENGTH, SIZE, make_processor
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTModel,
)

from hf_clip_domain.data.text import clean_caption
from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.domains import load_domain
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.image_sizes import image_settings

VISION = {**SIZE, "image_size": 32, "patch_size": 16}
TEXTS = ["a", "a rather longer text than that", "bb", "crack in steel", "x " * 200]


def make_model(kind):
    tokenizer = make_processor().tokenizer
    text = {**SIZE, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    if kind == "siglip":
        return SiglipModel(SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=VISION))
    if kind == "clip":
        return CLIPModel(CLIPConfig(text_config={**text, **special}, vision_config=VISION, projection_dim=16))
    if kind == "old clip":  # pools at the largest id, as the Hub's first CLIP models do
        old = {**text, **special, "eos_token_id": 2}
        return CLIPModel(CLIPConfig(text_config=old, vision_config=VISION, projection_dim=16))
    bert = BertConfig(**text)
    vision = ViTConfig(**VISION) if kind == "vit and bert" else CLIPVisionConfig(**VISION)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, bert, projection_dim=16)
    tower = ViTModel(vision) if kind == "vit and bert" else CLIPVisionModel(vision)
    return VisionTextDualEncoderModel(config, vision_model=tower, text_model=BertModel(bert))


KINDS = ["clip", "old clip", "siglip", "vit and bert", "clip and bert"]


def make_pictures(count, size=(40, 32)):
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


def plain_inputs(model, texts, pictures):
    """What a user would write without this package."""
    processor = make_processor()
    options = {"padding": "max_length", "max_length": LENGTH, "truncation": True, "return_tensors": "pt"}
    inputs = dict(processor.tokenizer(texts, **options))
    if model.config.model_type == "siglip":
        del inputs["attention_mask"]
    return inputs | dict(processor.image_processor(images=pictures, return_tensors="pt"))


@pytest.mark.parametrize("kind", KINDS)
def test_embeds_as_the_plain_model_does(kind):
    model, pictures = make_model(kind), make_pictures(5)
    embedder = ClipEmbedder(model, make_processor(), batch_size=2)
    model.eval()
    with torch.no_grad():
        expected = model(**plain_inputs(model, TEXTS, pictures))
    images, texts = embedder.embed_images(pictures), embedder.embed_texts(TEXTS)
    torch.testing.assert_close(images, expected.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(texts, expected.text_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(5))
    assert images.dtype == texts.dtype == torch.float32 and not images.requires_grad


def test_every_kind_of_picture_embeds_alike(tmp_path):
    picture = make_pictures(1)[0]
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(buffer.getvalue())
    row = {"bytes": buffer.getvalue(), "path": None}
    kinds = [
        picture,
        path,
        str(path),
        buffer.getvalue(),
        row,
        {"bytes": None, "path": str(path)},
        np.array(picture),
    ]
    embeds = ClipEmbedder(make_model("clip"), make_processor()).embed_images(kinds)
    torch.testing.assert_close(embeds, embeds[:1].expand(len(kinds), -1))


def test_pictures_are_read_lazily():
    held = []
    pictures = make_pictures(20)
    model = make_model("clip")

    def read():
        for number, picture in enumerate(pictures):
            held.append(number - embedded[0])
            yield picture

    embedded = [0]
    model.vision_model.register_forward_hook(lambda *_: embedded.__setitem__(0, embedded[0] + 2))
    embeds = ClipEmbedder(model, make_processor(), batch_size=2).embed_images(read())
    assert len(embeds) == 20 and max(held) < 4  # never more than two batches ahead of the model


def test_order_and_batches_do_not_matter():
    model, processor = make_model("clip"), make_processor()
    whole = ClipEmbedder(model, processor, batch_size=64).embed_texts(TEXTS)
    for batch_size in (1, 2, 3):
        parts = ClipEmbedder(model, processor, batch_size=batch_size).embed_texts(TEXTS[::-1])
        torch.testing.assert_close(parts.flip(0), whole, rtol=1e-4, atol=1e-5)


def test_short_texts_are_padded_little_and_long_ones_cut():
    model = make_model("clip")
    lengths = []
    model.text_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    ClipEmbedder(model, make_processor(), batch_size=2).embed_texts(["long " * 50, "a", "b", "x " * 10])
    assert lengths == [8, 24]


def test_every_module_keeps_its_mode():
    model = make_model("clip")
    model.train()
    model.vision_model.eval()  # a frozen tower
    modes = [module.training for module in model.modules()]
    embedder = ClipEmbedder(model, make_processor())
    embedder.similarity(make_pictures(1), ["a"])
    with pytest.raises(ClipDomainError):
        embedder.embed_images([b"no picture"])
    assert [module.training for module in model.modules()] == modes


def test_with_a_domain_inputs_are_prepared_as_in_training():
    model, processor, domain = make_model("clip"), make_processor(), load_domain("medical")
    picture, text = make_pictures(1, size=(64, 40))[0], "  A   chest\tradiograph "
    embedder = ClipEmbedder(model, processor, domain=domain)
    pixels = ImageTransform(domain, *image_settings(processor)).evaluation(picture)
    ids = processor.tokenizer(clean_caption(text, domain), return_tensors="pt")
    model.eval()
    with torch.no_grad():
        expected = model(**ids, pixel_values=pixels[None])
    torch.testing.assert_close(embedder.embed_images([picture]), expected.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedder.embed_texts([text]), expected.text_embeds, rtol=1e-4, atol=1e-5)


def test_similarity_takes_inputs_or_embeddings():
    embedder = ClipEmbedder(make_model("clip"), make_processor())
    pictures, texts = make_pictures(3), ["a", "b"]
    scores = embedder.similarity(pictures, texts)
    images, captions = embedder.embed_images(pictures), embedder.embed_texts(texts)
    torch.testing.assert_close(scores, images @ captions.T)
    torch.testing.assert_close(embedder.similarity(images, captions), scores)
    torch.testing.assert_close(embedder.similarity(pictures[0], "a"), scores[:1, :1], rtol=1e-4, atol=1e-5)


def test_a_similarity_that_needs_length_gets_it():
    model, pictures = make_model("clip"), make_pictures(2)
    raw = ClipEmbedder(model, make_processor(), similarity="dot").embed_images(pictures)
    unit = ClipEmbedder(model, make_processor()).embed_images(pictures)
    assert not torch.allclose(raw.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=1), unit)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_classify_averages_prompts_and_scales(kind):
    model, pictures = make_model(kind), make_pictures(3)
    embedder = ClipEmbedder(model, make_processor())
    labels, templates = ["cat", "dog", "{}"], ["a {}", "one {} here"]
    found = embedder.classify(pictures, labels, templates)
    averages = torch.stack([embedder.embed_texts([t.replace("{}", x) for t in templates]).mean(0) for x in labels])
    cosines = embedder.embed_images(pictures) @ torch.nn.functional.normalize(averages, dim=1).T
    torch.testing.assert_close(found, (model.logit_scale.exp() * cosines).softmax(dim=1).detach())
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))
    assert embedder.classify(pictures[0], labels).shape == (1, 3)  # generic prompts


def test_classify_uses_the_domains_prompts():
    domain = load_domain("medical")
    embedder = ClipEmbedder(make_model("clip"), make_processor(), domain=domain)
    pictures, labels = make_pictures(1), ["fracture", "no fracture"]
    expected = embedder.classify(pictures, labels, domain.prompts)
    torch.testing.assert_close(embedder.classify(pictures, labels), expected)


def test_from_pretrained_takes_the_folders_domain(tmp_path):
    model, processor = make_model("clip"), make_processor()
    model.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
    assert ClipEmbedder.from_pretrained(tmp_path).domain is None
    load_domain("industrial").save(tmp_path)
    loaded = ClipEmbedder.from_pretrained(tmp_path, batch_size=2)
    assert loaded.domain == load_domain("industrial") and loaded.batch_size == 2
    assert ClipEmbedder.from_pretrained(tmp_path, domain="medical").domain == load_domain("medical")
    assert loaded.embed_texts(["a"]).shape == (1, 16)


def test_half_precision_weights_give_float32_embeddings():
    embedder = ClipEmbedder(make_model("clip").to(torch.bfloat16), make_processor())
    assert embedder.embed_images(make_pictures(1)).dtype == torch.float32


@pytest.mark.parametrize(
    "do, told",
    [
        (lambda embedder: embedder.embed_images([]), "empty"),
        (lambda embedder: embedder.embed_texts([]), "empty"),
        (lambda embedder: embedder.embed_texts(["a", None]), "text 1 is a NoneType"),
        (lambda embedder: embedder.embed_images([*make_pictures(1), b"no picture"]), "image 1"),
        (lambda embedder: embedder.classify(make_pictures(1), []), "at least one label"),
        (lambda embedder: embedder.classify(make_pictures(1), ["a"], ["a photo"]), "a photo"),
        (lambda embedder: ClipEmbedder(embedder.model, embedder.processor, batch_size=0), "batch_size"),
        (lambda embedder: ClipEmbedder(embedder.model, embedder.processor, similarity="cosin"), "cosine"),
    ],
)
def test_wrong_input_is_told(do, told):
    with pytest.raises(ClipDomainError, match=told):
        do(ClipEmbedder(make_model("clip"), make_processor()))


def test_a_diverged_model_is_told():
    model = make_model("clip")
    torch.nn.init.constant_(model.text_projection.weight, torch.nan)
    with pytest.raises(ClipDomainError, match="2 of 2 text embeddings are not finite"):
        ClipEmbedder(model, make_processor()).embed_texts(["a", "b"])


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}, 32),
        ({"size": {"height": 48, "width": 48}, "do_center_crop": False}, 48),
        ({"size": {"shortest_edge": 56}, "do_center_crop": False}, 56),
    ],
)
def test_image_settings(options, expected):
    size, mean, std = image_settings(CLIPImageProcessorPil(**options, image_mean=[0.5] * 3))
    assert size == expected and mean == (0.5, 0.5, 0.5) and len(std) == 3


def test_a_size_that_is_not_square_is_told():
    with pytest.raises(ClipDomainError, match="square"):
        image_settings(CLIPImageProcessorPil(size={"height": 32, "width": 64}, do_center_crop=False))
