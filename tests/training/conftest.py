"""Small real models and batches for the trainer's tests."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel


def make_clip(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 98, "bos_token_id": 97}
    vision = {**size, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(
        text_config={**text, "pad_token_id": 0, "attention_dropout": dropout},
        vision_config={**vision, "attention_dropout": dropout},
        projection_dim=24,
    )
    return CLIPModel(config)


def make_siglip(seed=0):
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**size, "vocab_size": 99, "max_position_embeddings": 12, "projection_size": 32},
        vision_config={**size, "image_size": 16, "patch_size": 8},
    )
    return SiglipModel(config)


def make_batch(n, seed=0, length=12, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 97, (n, length), generator=generator)
    ids[:, -1] = 98  # the end token, at which CLIP pools
    return {
        "pixel_values": torch.randn(n, 3, 16, 16, generator=generator).to(dtype),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }


class Pairs(torch.utils.data.Dataset):
    """Rows of a fixed random set; a key's epoch changes the row a little, as augmentation would."""

    def __init__(self, n, seed=0):
        self.batch = make_batch(n, seed)

    def __len__(self):
        return len(self.batch["input_ids"])

    def epoch_key(self, epoch, index):
        return epoch * len(self) + index

    def __getitem__(self, key):
        epoch, index = divmod(key, len(self))
        row = {name: rows[index] for name, rows in self.batch.items()}
        row["pixel_values"] = row["pixel_values"] + 0.1 * epoch
        return row


@pytest.fixture
def one_thread():
    """For bitwise equality, which needs one number of threads on both sides."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clip():
    return make_clip


@pytest.fixture
def siglip():
    return make_siglip


@pytest.fixture
def batch():
    return make_batch


@pytest.fixture
def pairs():
    return Pairs
