"""Picture sizes as a user names them, as a model can take them, and as a processor makes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.utils import logging

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.image_positions import find_image_positions

logger = logging.get_logger(__name__)


def parse_sizes(value: Any, option: str) -> list[int]:
    """`"112,160"`, a number, or a list of either, as YAML has it: the numbers in that order.

    Raises:
        ClipDomainError: anything else.
    """
    shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    words = shown.replace(",", " ").split()
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ClipDomainError(f"{option} {shown}: expected sizes in pixels such as 112,160,224.")
    return [int(word) for word in words]


def whole_patches(model: nn.Module, sizes: Sequence[int]) -> list[int]:
    """The sizes, each rounded to the nearest that can be cut into whole patches; says so where it is another."""
    positions = find_image_positions(model)
    patch = 1 if positions is None else positions.patch
    found = set()
    for size in sizes:
        near = max(1, math.floor(size / patch + 0.5)) * patch
        if near != size:
            logger.warning(f"{size} pixels cannot be cut into patches of {patch}: {near} is measured.")
        found.add(near)
    return sorted(found)


def image_settings(processor: Any) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side in pixels of the square the model sees, and the mean and deviation a channel, from an image
    processor."""
    image_processor = getattr(processor, "image_processor", processor)
    crop = getattr(image_processor, "crop_size", None) if getattr(image_processor, "do_center_crop", False) else None
    size = crop or image_processor.size
    sides = [size] if isinstance(size, int) else [size.get(key) for key in ("height", "width", "shortest_edge")]
    sides = {side for side in sides if side}
    if len(sides) != 1:
        raise ClipDomainError(f"the image processor's size is {size}; expected a square, such as 224 x 224.")
    return sides.pop(), tuple(image_processor.image_mean), tuple(image_processor.image_std)
