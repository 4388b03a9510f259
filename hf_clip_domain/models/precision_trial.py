"""How much faster a device computes in a lower precision, and whether the values are right: one block, timed.

The block is a transformer's: matrix products and attention under autocast, forward and backward, in fp32 and in the
candidate by turns, so that what else the machine does slows both alike.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Seconds after which no further pair is timed. The whole trial ends well below two on an idle machine.
_BUDGET = 0.8
_PAIRS = 8
_LENGTH, _HEADS = 50, 8  # tokens of ViT-B/32
# Rows and width; a GPU needs enough work to show what it can do.
_SIZE = {"cpu": (4, 512)}
_LARGE = (64, 768)


@dataclass(frozen=True)
class Trial:
    """What was measured.

    Args:
        speedup: how many times faster than fp32 the candidate was in all pairs of runs but the slowest one.
        error: relative difference of the block's gradient from fp32's.
    """

    speedup: float
    error: float


@functools.cache
def try_precision(device: torch.device, dtype: torch.dtype) -> Trial:
    """Time the block in fp32 and under autocast in `dtype`; once a process. Draws nothing from global generators.

    On a CPU one core is timed: threads that wait for one another would measure what else the machine is doing.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _try(device, dtype)
    finally:
        torch.set_num_threads(threads)


def _try(device: torch.device, dtype: torch.dtype) -> Trial:
    rows, width = _SIZE.get(device.type, _LARGE)
    block = _Block(rows, width, device)
    plain, lower = block.run(None)[1], block.run(dtype)[1]  # also warms up both
    error = ((lower - plain).norm() / plain.norm()).item()
    ratios: list[float] = []
    end = time.perf_counter() + _BUDGET
    while len(ratios) < 2 or (len(ratios) < _PAIRS and time.perf_counter() < end):
        ratios.append(block.run(None)[0] / block.run(dtype)[0])
    return Trial(speedup=sorted(ratios)[1 if len(ratios) > 2 else 0], error=error if math.isfinite(error) else math.inf)


class _Block:
    """A transformer's block without norms: attention and the wide layers, each with its residual."""

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
        self.weights = [torch.randn(shape, generator=generator) / shape[0] ** 0.5 for shape in shapes]
        self.weights = [weight.to(device).requires_grad_() for weight in self.weights]
        self.x = torch.randn(rows, _LENGTH, width, generator=generator).to(device).requires_grad_()
        self.device = device

    def run(self, dtype: torch.dtype | None) -> tuple[float, torch.Tensor]:
        """Seconds, and the gradient of the input."""
        start = time.perf_counter()
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            output = self._forward()
        gradient = torch.autograd.grad(output.float().square().mean(), [self.x, *self.weights])[0]
        gradient[0, 0, 0].item()  # waits for the device
        return time.perf_counter() - start, gradient

    def _forward(self) -> torch.Tensor:
        expand, project, widen, narrow = self.weights
        heads = (self.x @ expand).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)  # (3, n, heads, t, d)
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)  # (n, t, width)
        x = self.x + attended @ project
        return x + F.gelu(x @ widen) @ narrow
