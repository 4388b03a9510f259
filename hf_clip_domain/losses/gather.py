"""Batches joined across processes, so that every process contrasts against all negatives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist

from hf_clip_domain.types import Targets


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of all processes, in rank order: `(n, d) -> (world_size * n, d)`; gradients flow back to their owner.

    Of three dimensions, `(r, n, d)`, the second holds the rows.

    Every process must hold the same number of rows. The backward pass sums, over processes, the gradients of each
    row. As every process computes the same loss of the whole batch, and data parallel training then averages over
    processes, the parameters receive exactly the gradient of the whole batch.
    """
    if not is_distributed():
        return rows
    if rows.ndim == 3:
        return torch.stack([gather_rows(each) for each in rows])
    if not rows.requires_grad:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)
    return _GatherRows.apply(rows)


def gather_targets(targets: Targets) -> Targets:
    """`gather_rows` of ids, or of each relation's."""
    if targets is None:
        return None
    if isinstance(targets, Mapping):
        return {name: gather_rows(values) for name, values in targets.items()}
    return gather_rows(targets)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous().clone()  # the incoming tensor may be shared with other consumers
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.count
        return gradient[start : start + ctx.count]


def log_add_exp_over_processes(values: torch.Tensor) -> torch.Tensor:
    """`log(sum(exp(values)))` over processes, element by element; gradients flow back to every process's values."""
    return _LogAddExpOverProcesses.apply(values) if is_distributed() else values


class _LogAddExpOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        total = torch.stack(parts).logsumexp(dim=0)
        ctx.save_for_backward(values, total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        values, total = ctx.saved_tensors
        gradient = gradient.contiguous().clone()  # the incoming tensor may be shared with other consumers
        dist.all_reduce(gradient)
        return gradient * (values - total).exp()


def mean_over_processes(scalars: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The mean of each scalar over the processes, which must all name the same ones in the same order."""
    if not is_distributed():
        return scalars
    values = torch.stack([value.detach() for value in scalars.values()])
    dist.all_reduce(values)
    return dict(zip(scalars, values / dist.get_world_size(), strict=True))
