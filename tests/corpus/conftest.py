"""A small CLIP as a folder, and a corpus of pictures with captions where some rows cannot be read."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=24)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**size, **special, "vocab_size": len(tokenizer), "max_position_embeddings": 24},
        vision_config={**size, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def corpus(tmp_path):
    """Makes `data.csv` with the columns image, text and id; row 3 lacks its file, 5 its caption, 7 is damaged."""

    def make(rows=23, name="data"):
        folder = tmp_path / name
        folder.mkdir()
        draws = np.random.default_rng(0)
        for number in range(rows):
            pixels = draws.integers(0, 255, (24, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / "7.png").write_bytes(b"no picture")
        with open(folder / "data.csv", "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["image", "text", "id"])
            for number in range(rows):
                picture = "missing.png" if number == 3 else f"{number}.png"
                writer.writerow([picture, "" if number == 5 else f"caption {number}", f"id-{number}"])
        return folder / "data.csv"

    return make
