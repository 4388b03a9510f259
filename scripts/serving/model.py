"""A CLIP of a given size with random weights, as a folder that any server loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from hf_clip_domain.models.loading import load_model


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


def export(folder: Path) -> Path:
    """Its ONNX export, made as a user would."""
    output = folder.with_name("onnx")
    command = [sys.executable, "-m", "hf_clip_domain.cli.main", "export", str(folder), "--format", "onnx"]
    subprocess.run([*command, "--output", str(output), "--rows", "32"], check=True, capture_output=True)
    return output
