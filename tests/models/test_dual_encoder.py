"""SigLIP and a pair of towers of other makes pass through the same doors as CLIP."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertTokenizer,
    BlipConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlavaConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    Siglip2Config,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
    ViTConfig,
)

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.dual_encoder import check_dual_encoder, find_logit_scale, text_padding
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.models.positions import text_capacity

WORDS = ["a", "red", "blue", "circle", "square", "and"]
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURE = {"image_size": 32, "patch_size": 16}


def save_siglip(folder, positions=24):
    vocabulary = {word: index for index, word in enumerate(["</s>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="</s>", unk_token="<unk>", model_max_length=positions
    )
    torch.manual_seed(0)
    text = {**SIZE, "vocab_size": len(vocabulary), "max_position_embeddings": positions}
    text |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={**SIZE, **PICTURE}))
    model.save_pretrained(folder)
    SiglipProcessor(SiglipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return model.eval()


def save_vit_and_bert(folder):
    folder.mkdir()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(tokens)})
    torch.manual_seed(0)
    config = VisionTextDualEncoderConfig(
        vision_config=ViTConfig(**SIZE, **PICTURE).to_dict(),
        text_config=BertConfig(**SIZE, vocab_size=len(tokens), max_position_embeddings=24).to_dict(),
        projection_dim=16,
    )
    model = VisionTextDualEncoderModel(config)
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    VisionTextDualEncoderProcessor(images, tokenizer).save_pretrained(folder)
    return model.eval()


def embed(model, processor, texts, padding):
    length = processor.tokenizer.model_max_length
    inputs = processor.tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        return model.eval().get_text_features(**inputs).pooler_output


@pytest.mark.parametrize("save", [save_siglip, save_vit_and_bert])
def test_other_dual_encoders_load_as_saved(tmp_path, save):
    saved = save(tmp_path / "model")
    model, processor = load_model(tmp_path / "model")
    assert type(model) is type(saved)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            model.get_image_features(pixel_values=pixels).pooler_output,
            saved.get_image_features(pixel_values=pixels).pooler_output,
        )
    texts = ["a red circle", "a blue square and a circle"]
    assert torch.equal(embed(model, processor, texts, "max_length"), embed(saved, processor, texts, "max_length"))
    # A tokenizer that names no limit gets its tower's.
    assert text_capacity(model) == processor.tokenizer.model_max_length == 24
    assert find_logit_scale(model) is model.logit_scale


def test_padding_is_each_towers_own(tmp_path, clip_folder):
    """BERT and CLIP read the same with less padding, SigLIP does not; which is why the rule is asked for."""
    save_siglip(tmp_path / "siglip")
    save_vit_and_bert(tmp_path / "pair")
    for folder, rule in (
        (tmp_path / "siglip", "max_length"),
        (tmp_path / "pair", "longest"),
        (clip_folder(), "longest"),
    ):
        model, processor = load_model(folder)
        assert text_padding(model) == rule
        full, short = (embed(model, processor, ["a red circle"], padding) for padding in ("max_length", "longest"))
        assert torch.allclose(full, short, atol=1e-5) == (rule == "longest")


def test_siglip_is_stretched_too(tmp_path):
    save_siglip(tmp_path / "siglip")
    model, processor = load_model(tmp_path / "siglip", max_text_length=40)
    texts = ["a red circle and " * 8 + ending for ending in ("red", "blue")]
    embeds = embed(model, processor, texts, "max_length")
    assert (embeds[0] - embeds[1]).abs().max() > 1e-5
    model.save_pretrained(tmp_path / "long")
    processor.save_pretrained(tmp_path / "long")
    again, its_processor = (
        SiglipModel.from_pretrained(tmp_path / "long"),
        SiglipProcessor.from_pretrained(tmp_path / "long"),
    )
    assert its_processor.tokenizer.model_max_length == text_capacity(again) == 40
    assert torch.equal(embed(again, its_processor, texts, "max_length"), embeds)


def test_a_tower_with_another_table_of_positions_is_not_stretched(tmp_path):
    save_vit_and_bert(tmp_path / "pair")
    with pytest.raises(ClipDomainError, match="VisionTextDualEncoderModel.*its limit stays 24 tokens"):
        load_model(tmp_path / "pair", max_text_length=40)


def test_roberta_reserves_positions_for_padding():
    """Its table has two rows more than there are tokens to read; a longer text would index behind its end."""
    text = RobertaConfig(**SIZE, vocab_size=20, max_position_embeddings=26, pad_token_id=1)
    model = VisionTextDualEncoderModel(
        VisionTextDualEncoderConfig(
            vision_config=ViTConfig(**SIZE, **PICTURE).to_dict(), text_config=text.to_dict(), projection_dim=16
        )
    )
    assert text_capacity(model) == 24
    longest = torch.full((1, 24), 5)
    assert model.get_text_features(longest, attention_mask=torch.ones_like(longest)).pooler_output.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model.get_text_features(torch.full((1, 25), 5), attention_mask=torch.ones(1, 25, dtype=torch.int64))


@pytest.mark.parametrize("config", [CLIPTextConfig(), CLIPVisionConfig(), BertConfig(), LlavaConfig()])
def test_one_tower_and_chat_models_are_refused(config):
    with pytest.raises(ClipDomainError, match=f"someone/x is a {config.model_type} model, no dual encoder"):
        check_dual_encoder(config, "someone/x")


def test_a_model_of_pictures_of_any_shape_is_refused_and_other_dual_encoders_are_not():
    with pytest.raises(ClipDomainError, match="siglip2 model that reads pictures as patches"):
        check_dual_encoder(Siglip2Config(), "someone/naflex")
    check_dual_encoder(BlipConfig(), "someone/blip")


def test_the_temperature_is_found_inside_wrappers_and_missed_by_name(clip_folder):
    model, _ = load_model(clip_folder())
    scale = model.logit_scale
    assert find_logit_scale(torch.nn.DataParallel(model)) is scale
    peft = pytest.importorskip("peft")
    assert find_logit_scale(peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))) is scale
    with pytest.raises(ClipDomainError, match="Linear has no logit_scale"):
        find_logit_scale(torch.nn.Linear(2, 2))
