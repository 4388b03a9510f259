"""The packaged starter: small enough to ship, loadable by plain transformers, and better than chance."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import CLIPModel, CLIPProcessor

import hf_clip_domain
from hf_clip_domain.data.samples import load_samples

FOLDER = Path(hf_clip_domain.__file__).parent / "models" / "starter"


@pytest.fixture(scope="module")
def starter() -> tuple[CLIPModel, CLIPProcessor]:
    model = CLIPModel.from_pretrained(FOLDER, local_files_only=True).float().eval()
    return model, CLIPProcessor.from_pretrained(FOLDER, local_files_only=True)


def test_the_folder_is_small_and_holds_half_precision_weights():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 8_000_000
    with safe_open(FOLDER / "model.safetensors", framework="pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118


def test_the_end_token_is_its_own_so_padding_never_matters(starter):
    model, processor = starter
    assert model.config.text_config.eos_token_id == processor.tokenizer.eos_token_id != 2
    short = processor(text=["a bar chart"], return_tensors="pt")
    padded = processor(text=["a bar chart"], return_tensors="pt", padding="max_length", max_length=77)
    with torch.inference_mode():
        expected = model.get_text_features(**short).pooler_output
        actual = model.get_text_features(**padded).pooler_output
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text", ["a micrograph of bone tissue", "the solar system", "naïve über 顕微鏡"])
def test_the_tokenizer_gives_lower_case_text_back(starter, text):
    tokenizer = starter[1].tokenizer
    ids = tokenizer(text.title()).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_pictures_and_texts_become_finite_embeddings_of_one_width(starter):
    model, processor = starter
    inputs = processor(
        text=["a dog", "a cell"],
        images=[Image.new("RGB", (300, 90), "red")] * 2,
        return_tensors="pt",
        padding=True,
    )
    assert inputs["pixel_values"].shape == (2, 3, 128, 128)
    with torch.inference_mode():
        output = model(**inputs)
    assert output.image_embeds.shape == output.text_embeds.shape == (2, model.config.projection_dim)
    assert torch.isfinite(output.logits_per_image).all()


@pytest.mark.parametrize("domain", ["general", "scientific", "medical", "industrial"])
def test_unseen_procedural_pictures_are_found_at_twice_chance(starter, domain):
    model, processor = starter
    # Another seed than the starter was trained with.
    rows = load_samples(domain, train=1, validation=1, test=60, seed=97)["test"]
    images = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
    captions = [row["text"][0] for row in rows]
    with torch.inference_mode():
        output = model(
            **processor(
                text=captions,
                images=images,
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=77,
            )
        )
    own = output.logits_per_text.diagonal()[:, None]
    recall = ((output.logits_per_text >= own).sum(1) <= 10).float().mean().item()
    assert recall >= 2 * 10 / len(rows), f"recall@10 {recall:.2f}; chance is {10 / len(rows):.2f}"
