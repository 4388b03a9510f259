"""Exact attention in slices over batch, heads and queries, holding the scores of one slice at a time.

A slice is a call of torch's `scaled_dot_product_attention`, so its kernels stay in use. Nothing of a slice but its
output is kept: the backward pass computes each slice again, with the same dropout, and adds its gradients up.

Source: Rabe and Staats 2021, "Self-attention Does Not Need O(n^2) Memory", arXiv 2112.05682, without splitting the keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

# Copies of a slice's scores that torch's plain formula (SDPBackend.MATH) holds at once in its backward pass, measured:
# 3 and with dropout 4, and one more for a mask that does not serve several heads. It computes in float32 at least.
_COPIES, _COPIES_WITH_DROPOUT = 4, 5
# Copies of a slice's queries, keys and values (scaled, made contiguous, their gradients).
_INPUT_COPIES = 4


def sliced_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    budget: int,
    dropout: float = 0.0,
    scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Attention as `scaled_dot_product_attention` computes it, within `budget` bytes beyond inputs and output.

    Args:
        query, key, value: `(b, h, q, d)`, `(b, h, k, d)`, `(b, h, k, d)`, of any strides.
        mask: broadcastable to `(b, h, q, k)`: boolean, true where attention is allowed, or added to the scores; it gets
            no gradient.
        budget: bytes for the scores alive at once, forward and backward; one query of one head is the least there is.
        dropout: share of the attention weights set to 0. Its draws are repeated in the backward pass; they are others
            for another budget.
        causal: position `i` sees the keys up to `i`; only without `mask`.

    Returns:
        `(b, q, h, d)`, contiguous: queries before heads, as transformers goes on with it.
    """
    if torch.is_autocast_enabled(query.device.type) and query.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if mask is not None:
        mask = mask[(None,) * (4 - mask.ndim)]
        mask = mask if mask.dtype == torch.bool else mask.to(query.dtype)
    return _SlicedAttention.apply(query, key, value, mask, budget, dropout, scale, causal)


def bytes_of_scores(query: torch.Tensor, key: torch.Tensor, dropout: float) -> tuple[int, int]:
    """Bytes that the plain formula takes at most, and those it keeps for the backward pass."""
    scores = query.shape[:3].numel() * key.shape[2] * _element(query)
    return scores * (_COPIES_WITH_DROPOUT if dropout else _COPIES), scores * (3 if dropout else 1)


def slices(query: torch.Tensor, key: torch.Tensor, dropout: float, budget: int) -> Iterator[tuple[slice, slice, slice]]:
    """Rows, heads and queries of each slice: whole heads where one fits the budget, else some queries of one head."""
    b, h, q, d = query.shape
    element = _element(query)
    copies = _COPIES_WITH_DROPOUT if dropout else _COPIES
    a_head = key.shape[2] * d * _INPUT_COPIES * element
    a_query = (key.shape[2] * copies + d * _INPUT_COPIES) * element
    queries = min(q, max(1, (budget - a_head) // a_query))
    whole_heads = budget // (a_head + q * a_query) if queries == q else 1
    heads = min(h, max(1, whole_heads))
    rows = min(b, max(1, whole_heads // h))
    yield from product(_ranges(b, rows), _ranges(h, heads), _ranges(q, queries))


class _SlicedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, mask, budget, dropout, scale, causal):
        ctx.save_for_backward(query, key, value, mask)
        ctx.budget, ctx.dropout, ctx.scale, ctx.causal = budget, dropout, scale, causal
        ctx.random_state = _random(query.device).get_rng_state() if dropout else None
        b, h, q, _ = query.shape
        output = query.new_empty(b, q, h, value.shape[-1])
        with torch.autocast(query.device.type, enabled=False):
            for part in slices(query, key, dropout, budget):
                rows, heads, queries = part
                piece = _attend(*_cut(part, query, key, value, causal), part, mask, dropout, scale, causal)
                output[rows, queries, heads] = piece.transpose(1, 2)
                del piece  # not to be held while the next is computed
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, value, mask = ctx.saved_tensors
        grads = [torch.zeros_like(tensor) for tensor in (query, key, value)]
        with torch.enable_grad(), torch.autocast(query.device.type, enabled=False), _replayed(ctx, query.device):
            for part in slices(query, key, ctx.dropout, ctx.budget):
                rows, heads, queries = part
                inputs = [piece.detach().requires_grad_() for piece in _cut(part, query, key, value, ctx.causal)]
                piece = _attend(*inputs, part, mask, ctx.dropout, ctx.scale, ctx.causal)
                piece_grads = torch.autograd.grad(piece, inputs, grad[rows, queries, heads].transpose(1, 2))
                for whole, more in zip(_cut(part, *grads, ctx.causal), piece_grads, strict=True):
                    whole += more
                del inputs, piece, piece_grads, whole, more
        return *grads, None, None, None, None, None


def _attend(query, key, value, part, mask, dropout, scale, causal) -> torch.Tensor:
    """One slice: `(b', h', q', d)`. The query, key and value are its own; the mask is the whole."""
    queries = part[2]
    if mask is not None:
        # A dimension of 1 serves all: it stays 1, and the mask of a slice stays small.
        mask = mask[tuple(cut if size > 1 else slice(None) for cut, size in zip(part, mask.shape, strict=False))]
    elif causal and queries.start > 0:
        positions = torch.arange(queries.start, queries.stop, device=query.device)
        mask, causal = positions[:, None] >= torch.arange(key.shape[2], device=query.device), False
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale, is_causal=causal
    )


def _cut(part, query, key, value, causal) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of what a slice needs; a causal one sees no keys behind its last query."""
    rows, heads, queries = part
    keys = slice(queries.stop) if causal else slice(None)
    return query[rows, heads, queries], key[rows, heads, keys], value[rows, heads, keys]


def _ranges(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _element(query: torch.Tensor) -> int:
    return max(4, query.element_size())


class _replayed:
    """The random state of the forward pass, and afterwards the one found."""

    def __init__(self, ctx, device: torch.device) -> None:
        self.state, self.random = ctx.random_state, _random(device)

    def __enter__(self) -> None:
        if self.state is not None:
            self.found = self.random.get_rng_state()
            self.random.set_rng_state(self.state)

    def __exit__(self, *_) -> None:
        if self.state is not None:
            self.random.set_rng_state(self.found)


def _random(device: torch.device):
    """The module that keeps the device's random state."""
    return torch.random if device.type == "cpu" else torch.get_device_module(device)
