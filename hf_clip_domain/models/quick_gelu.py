"""OpenAI's activation, `x * sigmoid(1.702 x)`, keeping half as much for the backward pass as transformers' own.

It is `silu(1.702 x) / 1.702`, so its derivative is that of SiLU at `1.702 x`, which PyTorch computes from `x` alone in one
pass. Left to autograd the formula keeps the sigmoid besides, in every layer one of the largest tensors.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.activations import QuickGELUActivation

SLOPE = 1.702


class LeanQuickGELU(nn.Module):
    """`(..., d) -> (..., d)`; the values are those of transformers' formula to the bit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return _QuickGELU.apply(x)
        return x * torch.sigmoid(SLOPE * x)


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.sigmoid(SLOPE * x).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, SLOPE * x)


def use_lean_activations(model: nn.Module) -> None:
    """Replace transformers' activation modules in `model`; weights and configuration stay as they are."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, QuickGELUActivation):
                setattr(module, name, LeanQuickGELU())
