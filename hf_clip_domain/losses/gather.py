"""Batches joined across processes, so that every process contrasts against all negatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist

from hf_clip_domain.types import Targets


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


_before: Callable[[], None] | None = None


@contextmanager
def preceded_by(call: Callable[[], None]) -> Iterator[None]:
    """Within, every collective operation of this module, forward or backward, calls `call` first in every process."""
    global _before
    outer, _before = _before, call
    try:
        yield
    finally:
        _before = outer


def _all_gather(values: torch.Tensor) -> list[torch.Tensor]:
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    values = values.contiguous()
    if _before is not None:
        _before()
    dist.all_gather(parts, values)
    return parts


def _sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    total = values.contiguous().clone()  # the incoming tensor may be shared with other consumers
    if _before is not None:
        _before()
    dist.all_reduce(total)
    return total


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
    return _GatherRows.apply(rows) if rows.requires_grad else torch.cat(_all_gather(rows))


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
        return torch.cat(_all_gather(rows))

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        start = dist.get_rank() * ctx.count
        return _sum_over_processes(gradient)[start : start + ctx.count]


def log_add_exp_over_processes(values: torch.Tensor) -> torch.Tensor:
    """`log(sum(exp(values)))` over processes, element by element; gradients flow back to every process's values."""
    return _LogAddExpOverProcesses.apply(values) if is_distributed() else values


class _LogAddExpOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: torch.Tensor) -> torch.Tensor:
        total = torch.stack(_all_gather(values)).logsumexp(dim=0)
        ctx.save_for_backward(values, total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        values, total = ctx.saved_tensors
        return _sum_over_processes(gradient) * (values - total).exp()


def mean_over_processes(scalars: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The mean of each scalar over the processes, which must all name the same ones in the same order."""
    if not is_distributed():
        return scalars
    values = _sum_over_processes(torch.stack([value.detach() for value in scalars.values()]))
    return dict(zip(scalars, values / dist.get_world_size(), strict=True))
