"""Where the time of a way goes: its functions are timed where they are called, each without what it calls in turn."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import PIL.Image
import PIL.ImageFile
from transformers.image_processing_backends import PilBackend

from hf_clip_domain.data import images, transforms
from hf_clip_domain.data.transforms import ImageTransform

STAGES = ("open", "decode", "upright, 8 bits", "figure?", "resize, crop, pad", "normalise", "rest, stack")
_FUNCTIONS = {
    "open": [(images, "_open"), (PIL.Image, "open")],
    "decode": [(PIL.ImageFile.ImageFile, "load")],
    "upright, 8 bits": [(images, "_to_8_bits"), (images, "_upright"), (PilBackend, "process_image")],
    "figure?": [(transforms, "ground_share")],
    "resize, crop, pad": [(ImageTransform, "_render"), (PilBackend, "resize"), (PilBackend, "center_crop")],
    "normalise": [
        (transforms, "_channels_first"),
        (ImageTransform, "_normalise"),
        (PilBackend, "rescale"),
        (PilBackend, "normalize"),
    ],
}


def stages_of(work: Callable[[], Any]) -> dict[str, float]:
    """The CPU seconds of `work` by stage."""
    seconds: Counter[str] = Counter()
    nested = [0.0]  # seconds within the functions that the running one called, for each that runs

    def timed(stage: str, function: Callable) -> Callable:
        def run(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            nested.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                spent = time.process_time() - start
                seconds[stage] += spent - nested.pop()
                nested[-1] += spent

        return run

    with ExitStack() as stack:
        for stage, functions in _FUNCTIONS.items():
            for owner, name in functions:
                stack.enter_context(mock.patch.object(owner, name, timed(stage, getattr(owner, name))))
        timed("rest, stack", work)()
    return {stage: seconds[stage] for stage in STAGES}
