"""A small real CLIP and small real pictures, for whole runs of the commands in seconds."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from hf_clip_domain.cli.main import main


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A small real CLIP in a folder: 32 px pictures, a token a letter."""
    folder = tmp_path_factory.mktemp("base")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=24)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, **ends, "vocab_size": len(tokens), "max_position_embeddings": 24}
    vision = {**size, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """Pictures of one colour each: 24 to train on, 20 to choose by, 20 to be scored; and 40 general ones."""
    folder = tmp_path_factory.mktemp("pairs")
    draw_shades(folder / "own", 64, "shade", ["train"] * 24 + ["validation"] * 20 + ["test"] * 20)
    draw_shades(folder / "general", 40, "colour", ["validation"] * 20 + ["test"] * 20)
    return ["--dataset", str(folder / "own"), "--probe_dataset", str(folder / "general")]


@pytest.fixture(scope="session")
def quick(base, sources):
    """The options of a training run on these, of three steps."""
    options = ["--model_name_or_path", base, "--domain", "scientific", "--precision", "fp32", *sources]
    options += ["--max_steps", "3", "--per_device_train_batch_size", "8", "--micro_batch_size", "8"]
    options += ["--learning_rate", "1e-3", "--dataloader_num_workers", "0", "--monitor", "false"]
    options += ["--save_strategy", "steps", "--save_steps", "3", "--eval_strategy", "steps", "--eval_steps", "3"]
    return options


@pytest.fixture(scope="session")
def train(quick):
    """The command with these, with the options and in the folder given."""
    return lambda out, *options: main(["train", *quick, "--output_dir", str(out), *options])


@pytest.fixture(scope="session")
def shades():
    """`shades(folder, count, word, splits)` draws a dataset."""
    return draw_shades


def draw_shades(folder, count, word, splits=None):
    folder.mkdir()
    colours = np.random.default_rng(0).integers(256, size=(count, 3))
    for index, colour in enumerate(colours.tolist()):
        Image.new("RGB", (32, 32), tuple(colour)).save(folder / f"{index}.png")
    rows = [{"file_name": f"{index}.png", "text": f"{word} {index}"} for index in range(count)]
    for row, split in zip(rows, splits or [], strict=False):
        row["split"] = split
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
