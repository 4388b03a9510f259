"""A small random model of towers, its processor, and batches for it."""

import pytest
import torch
from transformers import BertTokenizer, CLIPImageProcessorPil, VisionTextDualEncoderProcessor

from hf_clip_domain.models.towers import TowersConfig, TowersModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "red", "green", "square", "disc"]
STAGES = ((1, 3, 1, 1, 8), (2, 3, 2, 3, 12), (2, 5, 2, 3, 16))


def make_towers(seed=0):
    torch.manual_seed(seed)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": len(WORDS), "max_position_embeddings": 24, "hidden_dropout_prob": 0.0}
    text |= {"attention_probs_dropout_prob": 0.0}
    vision = {"image_size": 32, "stem_channels": 8, "stages": STAGES, "hidden_size": 32, "pooled_stages": (1, 2)}
    config = TowersConfig(text_config=text, vision_config=vision, projection_dim=16, pooled_layers=(1, 2))
    return TowersModel(config).eval()


def make_processor():
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}, model_max_length=24)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return VisionTextDualEncoderProcessor(image_processor=images, tokenizer=tokenizer)


def make_batch(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, len(WORDS), (n, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[::2, 6:] = 0  # every other text is shorter
    pixels = torch.randn(n, 3, 32, 32, generator=generator)
    return {"pixel_values": pixels, "input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture
def towers():
    return make_towers


@pytest.fixture
def processor():
    return make_processor


@pytest.fixture
def batch():
    return make_batch


@pytest.fixture
def saved(tmp_path):
    """A folder with a small model and its processor."""
    make_towers().save_pretrained(tmp_path / "towers")
    make_processor().save_pretrained(tmp_path / "towers")
    return tmp_path / "towers"
