"""The model and the pairs, written once so that all programs read the same."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.data.samples import load_samples
from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.domains import load_domain
from hf_clip_domain.embedder import image_settings
from hf_clip_domain.models.loading import load_model

# OpenAI's ViT-B/32, but for the vocabulary, which is the starter's (CLIP's own cannot be had offline).
VIT_B32 = {"vision_config": {}, "text_config": {"vocab_size": 5000, "bos_token_id": 4998, "eos_token_id": 4999}}
TINY = {
    "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "text_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "projection_dim": 16,
}
TINY["vision_config"] |= {"image_size": 32, "patch_size": 16}
TINY["text_config"] |= VIT_B32["text_config"]


def write_inputs(folder: Path, size: str, domain: str, dataset: str | None, largest: int) -> None:
    """`model/`, `pixels.pt` (n, 3, s, s) and `texts.json` of n pairs, `pairs.json` and `pictures/` of the training rows.

    Args:
        size: "starter" (its weights), "vit-b32" or "tiny" (random weights).
        largest: n, the largest batch; pairs of different captions, pictures repeated if there are too few.
    """
    folder.mkdir(parents=True)
    model, processor = load_model("starter")
    if size != "starter":
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(**(VIT_B32 if size == "vit-b32" else TINY)))
        model.config.text_config.pad_token_id = processor.tokenizer.pad_token_id
        side = model.config.vision_config.image_size
        processor.image_processor.size = {"shortest_edge": side}
        processor.image_processor.crop_size = {"height": side, "width": side}
    model.float().save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")

    rows = (load_pairs(dataset) if dataset else load_samples(domain, seed=0))["train"]
    transform = ImageTransform(load_domain(domain), *image_settings(processor))
    (folder / "pictures").mkdir()
    pairs, texts, pixels = [], {}, {}
    for number, row in enumerate(rows):
        file = folder / "pictures" / f"{number}.img"
        data = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
        file.write_bytes(data)
        pairs.append({"image": str(file), "texts": row["text"]})
        for text in row["text"]:
            texts.setdefault(text, number)
    chosen = list(texts.items())
    step = max(1, len(chosen) // largest)
    chosen = chosen[::step][:largest]
    if len(chosen) < largest:
        raise SystemExit(
            f"{dataset or domain}: {len(chosen)} different captions, and a batch of {largest} is asked for."
        )
    for _, number in chosen:
        if number not in pixels:
            pixels[number] = transform.evaluation(Path(pairs[number]["image"]).read_bytes())
    torch.save(torch.stack([pixels[number] for _, number in chosen]), folder / "pixels.pt")
    (folder / "texts.json").write_text(json.dumps([text for text, _ in chosen]), encoding="utf-8")
    (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
