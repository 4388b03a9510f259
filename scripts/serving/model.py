"""A CLIP of a given size with random weights, as a folder that any server loads; and what to ask it."""

from __future__ import annotations

import base64
import io
import random
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from hf_clip_domain.models.loading import load_model

_WORDS = (
    "a photo of the left right wrist chest heart curve plot bar crack weld metal galaxy small large bright dark".split()
)


def make_model(folder: Path, size: str) -> Path:
    """`"vit-b32"` is the shape of CLIP ViT-B/32 (151 million parameters), `"tiny"` one to try the script with.

    The processor is the starter's, at the model's resolution; what the weights are does not matter to the clock.
    """
    processor: CLIPProcessor = load_model("starter")[1]
    tokenizer = processor.tokenizer
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text, vision, width = {**special, "max_position_embeddings": 77, "vocab_size": 49408}, {}, 512
    if size == "tiny":
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        text, vision, width = {**text, **small, "vocab_size": len(tokenizer)}, {**small, "image_size": 64}, 16
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config={"patch_size": 32, **vision}, projection_dim=width)
    side = config.vision_config.image_size
    images = processor.image_processor
    images.size, images.crop_size = {"shortest_edge": side}, {"height": side, "width": side}
    tokenizer.model_max_length = 77
    CLIPModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def caption(draws: random.Random) -> str:
    """Eight to fourteen words, hardly ever the same."""
    return " ".join([*draws.choices(_WORDS, k=draws.randint(7, 13)), str(draws.randrange(10**6))])


def pictures(count: int, side: int = 256) -> list[bytes]:
    """JPEG files, as phones and thumbnails have them: smooth, with some detail."""
    draws, found = random.Random(0), []
    for _ in range(count):
        coarse = Image.frombytes("RGB", (16, 16), draws.randbytes(16 * 16 * 3))
        stream = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=85)
        found.append(stream.getvalue())
    return found


def as_input(picture: bytes) -> dict[str, str]:
    """As `/v1/embeddings` takes it."""
    return {"image": base64.b64encode(picture).decode()}
