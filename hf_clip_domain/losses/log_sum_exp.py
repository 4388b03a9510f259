"""Row and column log-sum-exp of a scaled product of embeddings, in tiles: the matrix is never held.

The forward pass takes one matrix product and keeps `n + m` numbers; the backward pass takes the product again tile by
tile, turns it into the gradient in place and multiplies it out: four products in all, where holding the matrix takes
three. Source of the idea: Dao et al. 2022, "FlashAttention"; Cheng et al. 2024, "Breaking the Memory Barrier" (Inf-CL).
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

TILE = 1024
# exp() of a spread up to this keeps float32 far from underflow: one exponential serves rows and columns alike.
_SAFE_SPREAD = 60.0


def log_sum_exp(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of `scale * x @ y.T`, along rows and along columns: `(n, d), (m, d), () -> (n,), (m,)`; differentiable once."""
    return _LogSumExp.apply(x, y, scale)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor):
        rows = x.new_full((len(x),), -torch.inf)
        columns = x.new_full((len(y),), -torch.inf)
        for i, j, logits in _tiles(x, y, scale):
            low, high = logits.aminmax()
            if high - low <= _SAFE_SPREAD:
                powers = logits.sub_(high).exp_()
                of_rows, of_columns = powers.sum(dim=1).log_() + high, powers.sum(dim=0).log_() + high
            else:
                of_rows, of_columns = logits.logsumexp(dim=1), logits.logsumexp(dim=0)
            rows[i] = torch.logaddexp(rows[i], of_rows)
            columns[j] = torch.logaddexp(columns[j], of_columns)
        ctx.save_for_backward(x, y, scale, rows, columns)
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx, of_rows: torch.Tensor, of_columns: torch.Tensor):
        x, y, scale, rows, columns = ctx.saved_tensors
        x_gradient, y_gradient = torch.zeros_like(x), torch.zeros_like(y)
        for i, j, logits in _tiles(x, y, scale):
            low, high = logits.aminmax()
            if high - low <= _SAFE_SPREAD:
                left = of_rows[i] * (high - rows[i]).exp()  # (t,)
                right = of_columns[j] * (high - columns[j]).exp()  # (t,)
                gradient = logits.sub_(high).exp_().mul_(left[:, None] + right)
            else:
                gradient = (logits - rows[i][:, None]).exp_().mul_(of_rows[i][:, None])
                gradient += logits.sub_(columns[j]).exp_().mul_(of_columns[j])
            x_gradient[i].addmm_(gradient, y[j])
            y_gradient[j].addmm_(gradient.T, x[i])
        scale_gradient = torch.linalg.vecdot(x_gradient, x).sum()  # before the scale itself is multiplied in
        return x_gradient.mul_(scale), y_gradient.mul_(scale), scale_gradient


def _tiles(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor):
    """Slices of rows and columns with their logits, a buffer that may be overwritten."""
    buffer = x.new_empty(min(TILE, len(x)) * min(TILE, len(y)))
    for top in range(0, len(x), TILE):
        i = slice(top, min(top + TILE, len(x)))
        scaled = x[i] * scale
        for left in range(0, len(y), TILE):
            j = slice(left, min(left + TILE, len(y)))
            shape = (i.stop - i.start, j.stop - j.start)
            yield i, j, torch.mm(scaled, y[j].T, out=buffer[: shape[0] * shape[1]].view(shape))


def sums_of_products(
    x: torch.Tensor, y: torch.Tensor, i: torch.Tensor, j: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """`sum_p weights[p, k] * x[i[p]] . y[j[p]]` for each k, without holding `(p, d)`: `weights (p, k) -> (k,)`.

    Differentiable once in `x` and `y`.
    """
    return _SumsOfProducts.apply(x, y, i, j, weights)


class _SumsOfProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, i, j, weights):
        ctx.save_for_backward(x, y, i, j, weights)
        total = x.new_zeros(weights.shape[1])
        for part in _parts(len(i)):
            total += torch.linalg.vecdot(x[i[part]], y[j[part]]) @ weights[part]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, y, i, j, weights = ctx.saved_tensors
        x_gradient, y_gradient = torch.zeros_like(x), torch.zeros_like(y)
        for part in _parts(len(i)):
            factor = (weights[part] @ gradient)[:, None]
            x_gradient.index_add_(0, i[part], factor * y[j[part]])
            y_gradient.index_add_(0, j[part], factor * x[i[part]])
        return x_gradient, y_gradient, None, None, None


def _parts(count: int):
    return (slice(start, min(start + TILE, count)) for start in range(0, count, TILE))
