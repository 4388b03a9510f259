"""How a tower computes its attention: torch's way, but where another takes less memory or less time.

In slices, only where the plain way would hold more scores than there is room for.

The plain way is torch's `scaled_dot_product_attention`. Where it has a fused kernel (CUDA; a CPU without dropout) no
scores are held and nothing is to be saved. Where it has none (Apple's MPS; dropout on a CPU) they are, of every layer
in training: those are the calls that may be sliced. A pure function of shapes and budget decides, so that a call
repeated by activation checkpointing goes the same way again.

By batched products, in bfloat16 on a CPU, where the tokens are few (`short_attention.py`).

It is done by an attention implementation of transformers whose name carries the budget. Names of implementations are
not saved: the saved model is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import torch
from torch import nn
from torch.nn.attention import SDPBackend
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from hf_clip_domain import memory
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.attention_slices import bytes_of_scores, sliced_attention
from hf_clip_domain.models.short_attention import is_short, short_attention

AUTO, OFF = "auto", "off"
_PREFIX = "sliced_"
# Of the room that a device has: weights' gradients, optimizer and the other activations come on top.
_SHARE = 4
_LARGEST_SLICE = 128 * memory.MIB  # larger ones are not faster, see docs/attention.md


def check_slicing(slicing: str | int, option: str = "attention_slicing") -> str:
    """`"auto"`, `"off"` or a number of MiB as text, however it was written.

    Raises:
        ClipDomainError: anything else.
    """
    text = OFF if slicing is False else str(slicing).strip().lower()  # YAML reads off as False
    if text in (AUTO, OFF) or (text.isdecimal() and int(text) > 0):
        return text
    raise ClipDomainError(f"{option} {slicing}: expected auto, off, or the MiB that attention may take, such as 256.")


def use_sliced_attention(model: nn.Module, slicing: str | int = AUTO) -> None:
    """Let the towers of `model` compute attention in slices where the plain way would take too much memory, in place.

    Outputs and gradients are the same up to rounding. Towers that do not compute by torch's
    `scaled_dot_product_attention` (`attn_implementation="eager"`, flash attention) are left as they are.

    Args:
        slicing: what the scores of a tower may take: MiB, `"auto"` for a quarter of what the device has left when it
            is first used, `"off"` for no limit.

    Raises:
        ClipDomainError: another `slicing`.
    """
    slicing = check_slicing(slicing)
    name = "sdpa" if slicing == OFF else _PREFIX + slicing
    if slicing != OFF:
        budget = None if slicing == AUTO else int(slicing) * memory.MIB
        AttentionInterface.register(name, partial(_attention, budget=budget))
        AttentionMaskInterface.register(name, sdpa_mask)
    for config in _configs_of_towers(model):
        current = config._attn_implementation or ""
        if current == "sdpa" or current.startswith(_PREFIX):
            config._attn_implementation = name


def _configs_of_towers(model: nn.Module) -> Iterator[PreTrainedConfig]:
    """Every configuration by which a tower's layers choose their attention.

    The layers of a VisionTextDualEncoderModel keep others than the one the tower shows, so that the towers' own
    `set_attn_implementation` would not reach them.
    """
    for tower in model.modules():
        if isinstance(tower, PreTrainedModel) and not tower.config.sub_configs and tower._can_set_attn_implementation():
            for module in tower.modules():
                if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
                    yield config


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    *,
    budget: int | None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention for transformers: `(b, h, q, d)`, `(b, h, k, d)` twice `-> (b, q, h, d)`, and no weights."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and attention_mask is None and query.shape[2] > 1
    if _is_ordinary(query, key, attention_mask, kwargs):
        budget = _automatic(query.device) if budget is None else budget
        large = scores_of_tower(module, query, key, dropout) > budget
        if large and _holds_scores(query, key, value, attention_mask, dropout, causal):
            slice_budget = min(budget, _LARGEST_SLICE)
            settings = {"dropout": dropout, "scale": scaling, "causal": causal}
            return sliced_attention(query, key, value, attention_mask, budget=slice_budget, **settings), None
        if not large and is_short(query, key, attention_mask, dropout):
            return short_attention(query, key, value, attention_mask, scale=scaling, causal=causal), None
    plain = AttentionInterface()["sdpa"]
    settings = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
    return plain(module, query, key, value, attention_mask, **settings, **kwargs)


def scores_of_tower(module: nn.Module, query: torch.Tensor, key: torch.Tensor, dropout: float) -> int:
    """Bytes that the scores take at most when they are held: of one layer, and in training those kept by the others."""
    at_most, kept = bytes_of_scores(query, key, dropout)
    # Dropout alone tells training too: reentrant checkpointing first computes without gradients.
    training = dropout > 0 or (torch.is_grad_enabled() and query.requires_grad)
    layers = getattr(getattr(module, "config", None), "num_hidden_layers", 1)
    return at_most + (layers - 1) * kept * training


def _is_ordinary(query, key, mask, kwargs) -> bool:
    """Whether this is the ordinary attention of an encoder, computed now and not traced for a compiler or an export."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    unusual = any(kwargs.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    return not unusual and query.shape[1] == key.shape[1] and not (mask is not None and mask.requires_grad)


def _holds_scores(query, key, value, mask, dropout, causal) -> bool:
    """Whether torch would compute this without a fused kernel."""
    if query.device.type not in ("cpu", "cuda", "xpu"):
        return True
    # The choice that scaled_dot_product_attention makes itself; there is no public way to ask for it.
    choice = torch._fused_sdp_choice(query, key, value, mask, dropout, causal)
    return choice == SDPBackend.MATH.value


@lru_cache
def _automatic(device: torch.device) -> int:
    return memory.room(device) // _SHARE
