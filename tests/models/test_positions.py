"""Longer texts by stretched positions, saved so that plain from_pretrained needs no flag."""

import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.models.positions import stretch_text_positions, text_capacity


def text_embeds(model, processor, texts):
    inputs = processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval().get_text_features(**inputs).pooler_output


@pytest.mark.parametrize("eos", [None, 2])
def test_a_stretched_model_reads_further_and_reloads_without_flags(clip_folder, tmp_path, eos):
    folder = clip_folder(eos=eos)
    model, processor = load_model(str(folder), max_text_length=60)
    assert text_capacity(model) == processor.tokenizer.model_max_length == 60
    long = ["red circle blue " * 3 + ending for ending in ("sun", "sea")]
    embeds = text_embeds(model, processor, long)
    assert (embeds[0] - embeds[1]).abs().max() > 1e-4, "the end of the caption is not read"
    plain, plain_processor = load_model(str(folder))
    cut = text_embeds(plain, plain_processor, long)
    assert torch.equal(cut[0], cut[1])
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again = CLIPModel.from_pretrained(tmp_path / "saved")
    again_processor = CLIPProcessor.from_pretrained(tmp_path / "saved")
    assert torch.equal(text_embeds(again, again_processor, long), embeds)


def test_the_first_positions_stay_and_short_captions_with_them(clip_folder):
    folder = clip_folder()
    before, processor = load_model(str(folder))
    after, _ = load_model(str(folder), max_text_length=60)
    old = before.text_model.embeddings.position_embedding.weight
    new = after.text_model.embeddings.position_embedding.weight
    assert new.shape == (60, 32) and torch.equal(new[:20], old[:20])
    torch.testing.assert_close(new[-1], old[-1])  # the ends meet, everything else lies between
    assert new[20:].amin() >= old[20:].amin() - 1e-6 and new[20:].amax() <= old[20:].amax() + 1e-6
    short = ["red circle"]
    assert torch.equal(text_embeds(before, processor, short), text_embeds(after, processor, short))


def test_its_own_length_changes_nothing_and_less_is_refused(clip_folder):
    model, processor = load_model(str(clip_folder()))
    before = model.text_model.embeddings.position_embedding.weight.clone()
    stretch_text_positions(model, processor.tokenizer, 24)
    assert torch.equal(model.text_model.embeddings.position_embedding.weight, before)
    with pytest.raises(ClipDomainError, match="--max_text_length 23 is less than the model's own 24"):
        stretch_text_positions(model, processor.tokenizer, 23)


def test_the_stretched_table_is_trained(clip_folder):
    model, processor = load_model(str(clip_folder()), max_text_length=60)
    inputs = processor.tokenizer(["red circle " * 6], truncation=True, return_tensors="pt")
    model.get_text_features(**inputs).pooler_output.sum().backward()
    gradient = model.text_model.embeddings.position_embedding.weight.grad
    assert gradient.shape == (60, 32) and gradient[40].abs().max() > 0
