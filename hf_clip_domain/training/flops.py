"""Floating point operations: how many a training step needs, and how many a second the device can do at most.

The quotient of the two is the model FLOPs utilisation of Chowdhery et al. 2022 ("PaLM", appendix B): only what the
forward and backward pass need counts, whatever else the hardware does. What micro-batches or activation checkpointing
compute a second time is not an achievement.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_clip_domain import memory
from hf_clip_domain.models.patch_dropout import counting_kept_patches

_SECONDS = 0.3  # for the measurement of the peak
_LARGEST = 8192  # rows of its largest matrix


def flops_per_pair(model: nn.Module, inputs: dict[str, Any], image_sizes: list[int] | None = None) -> int:
    """FLOPs of the forward and backward pass for one pair, counted while the model runs on it.

    Weights, gradients, random numbers and the model's mode stay as they are. Frozen weights need no gradient and are
    not counted as if they did. The loss is left out: next to two towers it is nothing.

    Args:
        model: prepared by `install_embedding_forward`.
        inputs: of one pair or more, of which the first is run.
        image_sizes: as the training step passes them.
    """
    n = len(inputs["pixel_values"])
    row = {key: value[:1] for key, value in inputs.items() if torch.is_tensor(value) and value.ndim and len(value) == n}
    if image_sizes:
        row["image_sizes"] = image_sizes
    modes = {module: module.training for module in model.modules()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()  # draws no dropout and recomputes no activations
    try:
        # The counter knows no formula for the fused attention of CPUs; as plain matrix products it is counted anywhere.
        patches = counting_kept_patches(model)
        with patches, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            embeddings = model(**row, micro_batch_size=None)
            total = embeddings["image_embeds"].float().sum() + embeddings["text_embeds"].float().sum()
            if trained and total.requires_grad:
                torch.autograd.grad(total, trained, allow_unused=True)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return counter.get_total_flops()


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few square matrix products, each twice as wide as the last; takes below half a second.

    What this process reaches on this machine as it is, with its threads and its neighbours, not what a data sheet
    promises.
    """
    # Own random numbers, not the run's; and not zeros, which some devices multiply faster.
    generator = torch.Generator(device).manual_seed(0)
    best, size, deadline = 0.0, 256, time.perf_counter() + _SECONDS
    itemsize = torch.empty((), dtype=dtype).element_size()
    while size <= _LARGEST and 3 * size**2 * itemsize < memory.room(device) / 8:
        matrix = torch.rand(size, size, dtype=dtype, device=device, generator=generator)
        for _ in range(3):
            _wait(device)
            start = time.perf_counter()
            matrix @ matrix
            _wait(device)
            seconds = time.perf_counter() - start
            best = max(best, 2 * size**3 / seconds)
            if time.perf_counter() + seconds > deadline:
                break
        size *= 2
        if time.perf_counter() + 8 * seconds > deadline:  # the next product takes eight times as long
            break
    if device.type in ("cuda", "mps"):
        torch.accelerator.empty_cache()
    return best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
