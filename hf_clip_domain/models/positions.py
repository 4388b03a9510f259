"""Longer captions than a text tower was trained with, by stretching its table of positions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_clip_domain.errors import ClipDomainError

KEEP = 20


def text_capacity(model: nn.Module) -> int:
    """The longest text in tokens, start and end tokens included.

    Raises:
        ClipDomainError: a text tower without a limit of its own.
    """
    positions = getattr(model.config.text_config, "max_position_embeddings", None)
    if positions is None:
        raise ClipDomainError(f"the text tower of {type(model).__name__} names no longest text in its configuration.")
    embeddings = getattr(getattr(model, "text_model", None), "embeddings", None)
    # RoBERTa and its kin count positions from behind the one reserved for padding.
    reserved = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return int(positions) - (0 if reserved is None else reserved + 1)


def stretch_text_positions(model: nn.Module, tokenizer: Any, length: int = 248, keep: int = KEEP) -> None:
    """Let a text tower read `length` tokens, in place; plain `from_pretrained` loads the result.

    The first `keep` positions, which nearly all training captions reached, stay bit for bit; the others are
    interpolated linearly over the longer range. `length` equal to the capacity changes nothing.

    Source: Zhang et al. 2024, "Long-CLIP: Unlocking the Long-Text Capability of CLIP", arXiv 2403.15378, section 3.1.

    Raises:
        ClipDomainError: `length` shorter than the capacity, or a text tower without a table of absolute positions.
    """
    capacity = text_capacity(model)
    if length == capacity:
        return
    if length < capacity:
        raise ClipDomainError(
            f"--max_text_length {length} is less than the model's own {capacity} tokens: leave it out, or give more."
        )
    if not keep < capacity:
        raise ClipDomainError(f"keep={keep} positions of {capacity} leaves none to interpolate.")
    embeddings = getattr(getattr(model, "text_model", None), "embeddings", None)
    table = getattr(embeddings, "position_embedding", None)
    if table is None:
        raise ClipDomainError(
            f"--max_text_length {length}: the text tower of {type(model).__name__} has no table of absolute positions "
            f"to stretch; its limit stays {capacity} tokens."
        )
    kept, rest = table.weight.data[:keep], table.weight.data[keep:]  # (keep, d), (capacity - keep, d)
    longer = F.interpolate(rest.T[None].float(), size=length - keep, mode="linear", align_corners=True)[0].T
    stretched = nn.Embedding(length, table.embedding_dim, device=table.weight.device, dtype=table.weight.dtype)
    stretched.weight.data = torch.cat([kept, longer.to(kept.dtype)]).contiguous()  # (length, d)
    embeddings.position_embedding = stretched
    embeddings.register_buffer("position_ids", torch.arange(length, device=table.weight.device)[None], persistent=False)
    # The tower keeps a reference of its own to the configuration; in some classes a copy.
    for config in (model.config.text_config, model.text_model.config, getattr(embeddings, "config", None)):
        if config is not None:
            config.max_position_embeddings = length
    tokenizer.model_max_length = length
