"""A small real CLIP with its processor, a token a letter; and pictures of one colour each with their captions."""

import io
import json

import numpy as np
import torch
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

SIDE, LENGTH = 32, 24
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def letter_tokenizer(**options):
    """Any text, every byte a token, with and without the mark of a word's end; the end token is the last, as in CLIP."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], **options)


def make_processor(length=LENGTH):
    sides = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=sides)
    return CLIPProcessor(images, letter_tokenizer(model_max_length=length))


def text_settings(tokenizer):
    """Of a text tower for this tokenizer."""
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {**SIZE, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}


def make_clip(seed=0, *, length=LENGTH, patch=16, width=16):
    """A random `CLIPModel` of `width` dimensions for pictures of 32 pixels, and its processor."""
    processor = make_processor(length)
    vision = {**SIZE, "image_size": SIDE, "patch_size": patch}
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=text_settings(processor.tokenizer), vision_config=vision, projection_dim=width)
    return CLIPModel(config), processor


def save_clip(folder, **choices):
    """The same in a folder; its path."""
    for part in make_clip(**choices):
        part.save_pretrained(folder)
    return str(folder)


def shade(colour):
    """A PNG of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), tuple(colour)).save(stream, "PNG")
    return stream.getvalue()


def draw_shades(folder, splits, word, seed=0):
    """A dataset in a folder, a picture for each of `splits` (the split's name, or `None`): its `(picture, caption)`."""
    folder.mkdir()
    colours = np.random.default_rng(seed).integers(256, size=(len(splits), 3)).tolist()
    pairs = [(shade(colour), f"{word} {number}") for number, colour in enumerate(colours)]
    rows = [{"file_name": f"{number}.png", "text": text} for number, (_, text) in enumerate(pairs)]
    for number, (row, split) in enumerate(zip(rows, splits, strict=True)):
        (folder / row["file_name"]).write_bytes(pairs[number][0])
        row |= {"split": split} if split else {}
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return pairs
