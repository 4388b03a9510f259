"""A loss that is a sum over rows, computed a few rows at a time with its exact gradient in linear memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd.function import once_differentiable

# Numbers of one block of rows; some ten blocks of this size live at once (float32: 8 MiB each).
BLOCK = 2**21

# From rows start:stop and all tensors to the sum of those rows' losses.
RowLoss = Callable[..., torch.Tensor]


def sum_over_rows(row_loss: RowLoss, rows: range, width: int, *tensors: torch.Tensor) -> torch.Tensor:
    """`sum(row_loss(start, stop, *tensors))` over blocks of `rows`; scalar, differentiable once in `tensors`.

    The gradient is taken block by block together with the value, so that no more than one block's graph exists.

    Args:
        row_loss: `(start, stop, *tensors) -> scalar`; may depend on nothing else that needs a gradient.
        rows: consecutive rows.
        width: numbers a row, by which the height of a block is chosen.
        tensors: what it is differentiated by.
    """
    height = max(1, BLOCK // max(1, width))
    if len(rows) <= height or not torch.is_grad_enabled():
        blocks = [row_loss(*block, *tensors) for block in _blocks(rows, height)]
        return torch.stack(blocks).sum() if blocks else sum(tensor.sum() for tensor in tensors) * 0.0
    return _SumOverRows.apply(row_loss, rows, height, *tensors)


def _blocks(rows: range, height: int) -> list[tuple[int, int]]:
    return [(start, min(start + height, rows.stop)) for start in range(rows.start, rows.stop, height)]


class _SumOverRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, row_loss: RowLoss, rows: range, height: int, *tensors: torch.Tensor) -> torch.Tensor:
        wanted = [index for index, tensor in enumerate(tensors) if ctx.needs_input_grad[index + 3]]
        leaves = [tensor.detach().requires_grad_(index in wanted) for index, tensor in enumerate(tensors)]
        total = tensors[0].new_zeros(())
        gradients = {index: torch.zeros_like(tensors[index]) for index in wanted}
        for start, stop in _blocks(rows, height):
            with torch.enable_grad():
                value = row_loss(start, stop, *leaves)
            parts = torch.autograd.grad(value, [leaves[index] for index in wanted], allow_unused=True)
            for index, part in zip(wanted, parts, strict=True):
                if part is not None:
                    gradients[index] += part
            total += value.detach()
        ctx.save_for_backward(*gradients.values())
        ctx.wanted, ctx.count = wanted, len(tensors)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        found: list[torch.Tensor | None] = [None] * ctx.count
        for index, part in zip(ctx.wanted, ctx.saved_tensors, strict=True):
            found[index] = part * gradient
        return None, None, None, *found
