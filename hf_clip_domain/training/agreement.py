"""How several processes agree on whether a step succeeded, so that none waits for ever for one that ran out of memory.

Processes can only agree in a collective operation that all of them reach. So every collective within a step is preceded
by a roll call, a sum of one number: a process that failed answers the next roll call with "failed", wherever the others
have got to, and all of them leave the step there. Gradients are averaged after the last roll call, since data parallel
training's own averaging, in the middle of the backward pass, could not be left half done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from hf_clip_domain.losses import gather

_BUCKET = 2**23  # numbers that are averaged at once


class PeerFailed(RuntimeError):
    """Another process could not finish the step."""

    def __init__(self) -> None:
        super().__init__("another process ran out of memory")


class RollCall:
    """Called by every process at the same points of a step; of one process alone it does nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self) -> None:
        """Go on if everybody can.

        Raises:
            PeerFailed: another process answered that it failed.
        """
        if self._count_failed(0):
            raise PeerFailed

    def answer_failed(self) -> None:
        """Tell the others, at their next roll call."""
        self._count_failed(1)

    def smallest(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        if not gather.is_distributed():
            return number
        numbers = torch.tensor(number, device=self.device)
        dist.all_reduce(numbers, op=dist.ReduceOp.MIN)
        return int(numbers)

    def _count_failed(self, failed: int) -> int:
        if not gather.is_distributed():
            return 0
        count = torch.tensor(failed, device=self.device)
        dist.all_reduce(count)
        return int(count)

    @contextmanager
    def before_collectives(self) -> Iterator[None]:
        """Within, the collectives of the losses begin with a roll call."""
        with gather.preceded_by(self):
            yield


class GradientAverage:
    """The mean of the gradients over the processes, through one buffer that is taken before anything is changed."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        size = min(_BUCKET, sum(parameter.numel() for parameter in self.parameters))
        sizes = {parameter.dtype: max(size, 1) for parameter in self.parameters}
        self.buffers = {
            dtype: torch.empty(size, dtype=dtype, device=self.parameters[0].device) for dtype, size in sizes.items()
        }

    def __call__(self) -> None:
        """Average every gradient; a parameter that only some processes used counts as zero in the others."""
        used = torch.tensor([float(p.grad is not None) for p in self.parameters], device=self.parameters[0].device)
        dist.all_reduce(used)
        waiting: list[torch.Tensor] = []
        for parameter, count in zip(self.parameters, used.tolist(), strict=True):
            if not count:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradient = parameter.grad.view(-1) if parameter.grad.is_contiguous() else None
            if gradient is None:  # of unusual strides: by itself
                self._average(parameter.grad)
                continue
            for part in gradient.split(_BUCKET):
                full = sum(map(len, waiting)) + len(part) > len(self.buffers[part.dtype])
                if waiting and (full or waiting[0].dtype != part.dtype):
                    self._average_together(waiting)
                    waiting = []
                waiting.append(part)
        if waiting:
            self._average_together(waiting)

    def _average_together(self, parts: list[torch.Tensor]) -> None:
        joined = self.buffers[parts[0].dtype][: sum(map(len, parts))]
        torch.cat(parts, out=joined)
        self._average(joined)
        for part, mean in zip(parts, joined.split([len(part) for part in parts]), strict=True):
            part.copy_(mean)

    @staticmethod
    def _average(numbers: torch.Tensor) -> None:
        dist.all_reduce(numbers)
        numbers /= dist.get_world_size()
