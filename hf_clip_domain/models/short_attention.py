"""Attention over few tokens in bfloat16 on a CPU, by batched matrix products.

torch's fused kernel for CPUs goes through the keys in blocks, which pays for long sequences; for the 50 tokens of a
ViT-B/32 or a caption's 77 its backward pass is several times slower than batched matrix products, which the processor's
bfloat16 instructions compute (docs/attention.md has the measurement).

Source: Vaswani et al. 2017, "Attention Is All You Need", arXiv 1706.03762, eq. 1.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

# Beyond, the weights that are kept for the backward pass take too large a share of a layer's memory.
MOST_TOKENS = 200


def is_short(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, dropout: float) -> bool:
    """Whether `short_attention` computes this, and faster than torch's kernel."""
    return (
        query.device.type == "cpu"
        and query.dtype == key.dtype == torch.bfloat16
        and max(query.shape[2], key.shape[2]) <= MOST_TOKENS
        and dropout == 0.0
        and (mask is None or mask.dtype == torch.bool)
    )


def short_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Attention as `scaled_dot_product_attention` computes it, up to the rounding of scores and weights to bfloat16.

    Args:
        query, key, value: `(b, h, q, d)`, `(b, h, k, d)`, `(b, h, k, d)`, of any strides.
        mask: boolean, broadcastable to `(b, h, q, k)`, true where attention is allowed.
        scale: of the scores. Default: `d ** -0.5`.
        causal: position `i` sees the keys up to `i`; only without `mask`.

    Returns:
        `(b, q, h, d)`, contiguous: queries before heads, as transformers goes on with it.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    return _ShortAttention.apply(query, key, value, mask, scale)


class _ShortAttention(torch.autograd.Function):
    """Keeps the weights in bfloat16 alone; left to autograd, the scores would be kept too, and in float32."""

    @staticmethod
    def forward(ctx, query, key, value, mask, scale):
        batch, heads, queries, _ = query.shape
        query, key, value = (part.reshape(batch * heads, *part.shape[2:]) for part in (query, key, value))
        scores = _product(query, key.mT, scale)  # (b * h, q, k)
        if mask is not None:
            # Not -inf: a padded row that may see nothing would become NaN.
            lowest = torch.finfo(scores.dtype).min
            scores.view(batch, heads, queries, -1).masked_fill_(~mask, lowest)
        weights = torch.softmax(scores, -1)  # computed in float32, rounded at the end
        ctx.save_for_backward(query, key, value, weights)
        ctx.heads, ctx.scale = heads, scale
        return _heads_last(torch.bmm(weights, value), heads)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        query, key, value, weights = ctx.saved_tensors
        gradient = gradient.transpose(1, 2).reshape(value.shape[0], -1, value.shape[2])  # (b * h, q, d)
        of_value = torch.bmm(weights.mT, gradient)
        of_weights = torch.bmm(gradient, value.mT)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_query, of_key = _product(of_scores, key, ctx.scale), _product(of_scores.mT, query, ctx.scale)
        return *(_heads_apart(part, ctx.heads) for part in (of_query, of_key, of_value)), None, None


def _product(left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """`scale * left @ right`, scaled before it is rounded."""
    out = left.new_empty(left.shape[0], left.shape[1], right.shape[2])
    return torch.baddbmm(out, left, right, beta=0, alpha=scale)


def _heads_apart(part: torch.Tensor, heads: int) -> torch.Tensor:
    return part.view(-1, heads, *part.shape[1:])


def _heads_last(part: torch.Tensor, heads: int) -> torch.Tensor:
    return _heads_apart(part, heads).transpose(1, 2).contiguous()
