"""The size that a run ends with: the model and its processor brought to it, and `--resolutions auto` decided."""

from __future__ import annotations

import functools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from torch import nn

from hf_clip_domain import memory
from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.cli.options import RunOptions
from hf_clip_domain.data.images import decode_image
from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.image_positions import at_image_size, check_image_size, image_size_of
from hf_clip_domain.models.image_sizes import image_settings
from hf_clip_domain.training.affordable import affordable_sizes, candidates, pair_timer
from hf_clip_domain.training.agreement import RollCall
from hf_clip_domain.training.batch_size import choose_batch_size

RECORD = "resolutions.json"
_PICTURES = 8  # that are looked at


def at_last_size(model: nn.Module, processor: Any, pairs: DatasetDict, options: RunOptions, say) -> tuple:
    """Model and processor for the last of `--resolutions`, sharing all but the positions; as they are without any.

    Raises:
        ClipDomainError: a size that the model's patches do not fit in, or a stream of pairs with auto.
    """
    training = options.training
    if training.resolutions is None:
        return model, processor
    if training.resolutions == "auto":
        training.resolutions = _chosen(model, processor, pairs, options, say)
    for size in training.resolutions:
        check_image_size(model, size)
    last, own = training.resolutions[-1], image_size_of(model)
    if last != own:
        say(f"The model reads pictures of {own} pixels: its positions are interpolated for {last}.")
    return at_image_size(model, processor, last)


def _chosen(model: nn.Module, processor: Any, pairs: DatasetDict, options: RunOptions, say) -> list[int]:
    """By measurement; for a run that is resumed as it was chosen before."""
    training = options.training
    record = Path(training.output_dir) / RECORD
    if training.resume_from_checkpoint and record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))["sizes"]
    if options.data.streaming:
        raise ClipDomainError(
            "--resolutions auto looks at the pictures first, which --streaming does not allow: name sizes."
        )
    rows = pairs["train"]
    drawn = [rows[int(place)]["image"] for place in np.linspace(0, len(rows) - 1, min(_PICTURES, len(rows)))]
    compute = pair_timer(model, processor, training)

    @functools.cache
    def reading(size: int) -> float:
        transform = ImageTransform(options.domain, *image_settings(at_image_size(model, processor, size)[1]))
        start = time.perf_counter()
        for image in drawn:
            transform.training(image, np.random.default_rng(0))
        return (time.perf_counter() - start) / len(drawn) / max(1, training.dataloader_num_workers)

    sizes = candidates(model, int(statistics.median(max(decode_image(image).size) for image in drawn)))
    count = _pairs_of_a_process(training, len(rows), image_size_of(model))
    found = affordable_sizes(training, model, sizes, lambda size, last: compute(size) + reading(last), count)
    # Every process has its own clock: all take the smallest.
    last = RollCall(training.device).smallest(found.sizes[-1])
    if last != found.sizes[-1]:
        found = affordable_sizes(training, model, [last], lambda size, last: compute(size) + reading(last), count)
    if training.process_index == 0:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"sizes": found.sizes, "minutes": round(found.minutes, 2)}), encoding="utf-8")
    text = ", ".join(map(str, found.sizes))
    say(f"Picture sizes {text}: about {found.minutes:.1f} of {training.resolution_minutes:g} minutes of steps.")
    if found.minutes > training.resolution_minutes:
        say("No size is within --resolution_minutes: the smallest is taken.")
    return list(found.sizes)


def _pairs_of_a_process(training: ClipTrainingArguments, rows: int, image_size: int) -> int:
    if training.max_steps <= 0:
        return int(rows * training.num_train_epochs / training.world_size)
    batch = training.per_device_train_batch_size
    if training.choose_batch_size:
        room = memory.room(training.device)
        batch = choose_batch_size(rows, processes=training.world_size, image_size=image_size, room=room)
    return training.max_steps * batch * training.gradient_accumulation_steps
