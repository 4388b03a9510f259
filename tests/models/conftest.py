"""A small CLIP with a tokenizer of its own, as a folder that plain from_pretrained loads."""

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer


@pytest.fixture
def clip_folder(tmp_path):
    def make(name="clip", eos=None, positions=24):
        folder = tmp_path / name
        folder.mkdir()
        # One token a letter, with and without the mark of a word's end; the end token has the largest id, as in CLIP.
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        vocabulary = {word: index for index, word in enumerate(words)}
        tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=positions)
        end = tokenizer.eos_token_id
        torch.manual_seed(0)
        size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = {"vocab_size": len(tokenizer), "max_position_embeddings": positions}
        text |= {"eos_token_id": end if eos is None else eos}
        text |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = CLIPConfig(
            text_config={**size, **text}, vision_config={**size, "image_size": 32, "patch_size": 16}, projection_dim=16
        )
        model = CLIPModel(config)
        model.text_model.embeddings.position_embedding.weight.data.normal_()
        model.save_pretrained(folder)
        images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        CLIPProcessor(images, tokenizer).save_pretrained(folder)
        return folder

    return make
