"""Picture sizes as a user names them, and as a model can take them."""

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
    """`"112,160"`, or a list of such, as rising different numbers.

    Raises:
        ClipDomainError: anything else.
    """
    words = [word for part in (value if isinstance(value, list) else [value]) for word in str(part).split(",")]
    if not words or not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        raise ClipDomainError(f"{option} {shown}: expected sizes in pixels such as 112,160,224.")
    return sorted({int(word) for word in words})


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
