"""A small real CLIP with its processor, and small real pairs."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer


def make_clip(seed=0):
    """A random `CLIPModel` and its processor: 32 px pictures, 24 tokens of letters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=24)
    side = {"height": 32, "width": 32}
    processor = CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side), tokenizer)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config={
            **size,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 24,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**size, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    return CLIPModel(config), processor


def make_rows(count, seed=0):
    """`count` rows with a PNG each and one or two captions; every third row shares one caption."""
    draw = np.random.default_rng(seed)
    rows = []
    for row in range(count):
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(buffer, "PNG")
        text = [f"picture {row}"] if row % 2 else [f"picture {row}", f"number {row} again, at some length"]
        text += ["a shared caption"] if row % 3 == 0 else []
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "text": text})
    return rows


@pytest.fixture(scope="session")
def clip():
    return make_clip


@pytest.fixture(scope="session")
def rows():
    return make_rows
