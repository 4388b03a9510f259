"""Two small models as folders, and a client of an application in this process."""

import base64
from contextlib import asynccontextmanager

import httpx
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from hf_clip_domain.serving.app import create_app
from hf_clip_domain.serving.canary import draw_canary
from hf_clip_domain.serving.model import LoadedModel
from hf_clip_domain.serving.settings import Settings


def save_clip(folder, seed=0, width=16, side=32):
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=40)
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 40, "eos_token_id": tokenizer.eos_token_id}
    text |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision = {"image_size": side, "patch_size": 16}
    model = CLIPModel(CLIPConfig(text_config={**size, **text}, vision_config={**size, **vision}, projection_dim=width))
    model.text_model.embeddings.position_embedding.weight.data.normal_()
    model.text_model.embeddings.token_embedding.weight.data.normal_()
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("first") / "clip")


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("second") / "clip", seed=1)


@pytest.fixture(scope="session")
def narrow_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("narrow") / "clip", width=8)


@pytest.fixture
def serve():
    """`async with serve(model, **settings) as (client, service)`: a folder, or a model that is loaded."""

    @asynccontextmanager
    async def start(model, **settings):
        loaded = model if isinstance(model, LoadedModel) else None
        app = create_app(Settings(model=model if loaded is None else loaded.source, **settings), loaded)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
                yield client, app.state.service

    return start


@pytest.fixture(scope="session")
def pictures():
    """PNG files."""
    return [draw_canary(seed) for seed in range(6)]


@pytest.fixture(scope="session")
def encoded(pictures):
    """The same in base64."""
    return [base64.b64encode(picture).decode() for picture in pictures]
