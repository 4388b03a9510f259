"""`--resolutions auto`: the largest final size whose run, small pictures first, takes no more than a budget of time.

What a pair costs is measured on this machine, with this model: forward and backward pass at a size, by a few rows.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.models.dual_encoder import features
from hf_clip_domain.models.image_positions import at_image_size, find_image_positions, image_size_of
from hf_clip_domain.models.patch_dropout import install_patch_dropout
from hf_clip_domain.models.positions import text_capacity
from hf_clip_domain.training.callbacks.resolution import ResolutionSchedule
from hf_clip_domain.training.replay import StepStart, free_memory, is_out_of_memory

_LOW = 4 / 7  # first size as a share of the last: 128 to 224, as measured in docs/resolutions.md
_SPAN = (0.5, 2.0)  # last sizes that are tried, as shares of the model's own
_ROWS_ON_CPU, _ROWS = 8, 64  # of a pass that is timed; an accelerator is idle on a few
_WITHOUT_PATCHES = 16


@dataclass(frozen=True)
class Affordable:
    """The sizes that were chosen, and the minutes that their run is predicted to take."""

    sizes: tuple[int, int]
    minutes: float


def candidates(model: nn.Module, most: int) -> list[int]:
    """Last sizes to try, descending: multiples of the patch from half to twice the model's own size.

    Args:
        most: pixels that the pictures have; larger ones than both that and the model's own show nothing more.
    """
    own, patch = image_size_of(model), _patch(model)
    stride = max(patch, own // 8 // patch * patch)
    ceiling = min(int(_SPAN[1] * own), max(most, own))
    sizes = range(own - (own - int(_SPAN[0] * own)) // stride * stride, ceiling + 1, stride)
    return sorted((size for size in sizes if size >= patch), reverse=True)


def affordable_sizes(
    args: ClipTrainingArguments,
    model: nn.Module,
    sizes: Sequence[int],
    seconds: Callable[[int, int], float],
    pairs: int,
) -> Affordable:
    """The largest of `sizes` (descending) whose run is predicted to take at most `args.resolution_minutes`.

    The smallest where none does.

    Args:
        seconds: what a pair costs at a size, of pictures that are read at another; infinite where it does not fit.
        pairs: that a process embeds in the run.
    """
    patch = _patch(model)
    for last in sizes:
        first = min(last, max(patch, -(-int(_LOW * last) // patch) * patch))
        both = (first, last) if first < last else (last,)
        schedule = ResolutionSchedule(both, args.resolution_schedule, args.resolution_warmup, patch, args.seed)
        minutes = pairs * schedule.mean_cost(lambda size, last=last: seconds(size, last)) / 60
        if minutes <= args.resolution_minutes:
            break
    return Affordable(both, minutes)


def pair_timer(model: nn.Module, processor: Any, args: ClipTrainingArguments) -> Callable[[int], float]:
    """Times forward and backward pass of a pair at a size, once a size; infinite where a few rows do not fit in memory.

    Weights, gradients and random state are left as they were.
    """
    rows = _ROWS_ON_CPU if args.device.type == "cpu" else _ROWS
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(args.precision)
    ids = torch.ones(rows, text_capacity(model), dtype=torch.int64, device=args.device)

    def one_pass(sized: nn.Module, size: int) -> float:
        pixels = torch.rand(rows, 3, size, size, device=args.device)
        _wait(args.device)
        start = time.perf_counter()
        with torch.autocast(args.device.type, half, enabled=half is not None):
            image = features(sized.get_image_features(pixel_values=pixels))
            text = features(sized.get_text_features(input_ids=ids))
        (image.float().sum() + text.float().sum()).backward()
        _wait(args.device)
        return (time.perf_counter() - start) / rows

    @functools.cache
    def seconds(size: int) -> float:
        sized, _ = at_image_size(model, processor, size)
        install_patch_dropout(sized, args.patch_dropout)
        modes, start = [(module, module.training) for module in sized.modules()], StepStart(model)
        try:
            sized.train()
            return min(one_pass(sized, size) for _ in range(3))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        finally:
            start.restore(model)
            for module, mode in modes:
                module.training = mode
        free_memory()
        return float("inf")

    return seconds


def _patch(model: nn.Module) -> int:
    positions = find_image_positions(model)
    return _WITHOUT_PATCHES if positions is None else positions.patch


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
