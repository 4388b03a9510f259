"""The size of the pictures by the progress of a run: small ones first, which cost less, and large ones at the end.

The loader gives every picture at the last size; a batch is made smaller on the device when its step begins. Loader
workers, which prepare batches ahead and keep a copy of what they were started with, therefore need not know the size.

Sources: Li et al. 2023, "An Inverse Scaling Law for CLIP Training" (CLIPA), arXiv 2305.07017; Li et al. 2023,
"RECLIP: Resource-efficient CLIP by Training with Small Images", arXiv 2304.06028.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.image_positions import (
    accept_any_size,
    check_image_size,
    find_image_positions,
    image_size_of,
)
from hf_clip_domain.models.patch_dropout import install_patch_dropout
from hf_clip_domain.training.micro_batching import at_size
from hf_clip_domain.training.token_level import TokenLevel


@dataclass(frozen=True)
class ResolutionSchedule:
    """The size at every step: a function of the step and the seed alone, so that a resumed run goes on as it would have.

    From the share `warmup` of the run on it is the last size. Before, with the progress p from 0 to 1 of that share:
        constant: the one size. step: the sizes but the last in turn, for equal shares.
        linear: `first + (last - first) * p`. cosine: `first + (last - first) * (1 - cos(pi p)) / 2`; both in whole
            multiples of the patch.
        random: one of all the sizes, drawn for each step by `seed`.

    Attributes:
        sizes: in pixels, ascending. patch: in pixels.
    """

    sizes: tuple[int, ...]
    kind: str = "step"
    warmup: float = 0.8
    patch: int = 1
    seed: int = 0

    def at(self, step: int, steps: int) -> int:
        """Pixels a side at step `step`, from 0, of `steps`."""
        begun = self.warmup * steps
        if step >= begun or len(self.sizes) == 1:
            return self.sizes[-1]
        progress = step / begun
        if self.kind == "step":
            return self.sizes[int(progress * (len(self.sizes) - 1))]
        if self.kind == "random":
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            return self.sizes[int(torch.randint(len(self.sizes), (), generator=generator))]
        if self.kind == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        first, last = self.sizes[0], self.sizes[-1]
        return first + round(progress * (last - first) / self.patch) * self.patch

    def mean_cost(self, cost: Callable[[int], float], steps: int = 1000) -> float:
        """The mean over a run of what a step costs at its size."""
        costs = {size: cost(size) for size in {self.at(step, steps) for step in range(steps)}}
        return sum(costs[self.at(step, steps)] for step in range(steps)) / steps


class ResolutionCurriculum(TrainerCallback):
    """Keeps the size of the next step, and brings batches to it.

    Attributes:
        size: of the step that is begun, or else of the next one. used: of the last batch that was brought to it.

    Args:
        tell: called with `None` and a sentence when the size changes to one that was not used before.
    """

    def __init__(self, schedule: ResolutionSchedule, tell: Callable[[str | None, str], None]) -> None:
        self.schedule, self.tell = schedule, tell
        self.size = self.used = schedule.sizes[-1]
        self._told: set[int] = set()

    def on_train_begin(self, args, state, control, **kwargs):
        self._told.clear()
        self.size = self.schedule.at(state.global_step, state.max_steps)

    def on_step_end(self, args, state, control, **kwargs):
        self.size = self.schedule.at(state.global_step, state.max_steps)

    def shrink(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with its `pixel_values` at the size of its step."""
        if "pixel_values" not in batch:
            return batch
        self.used = self.size
        if self.size not in self._told:
            self._told.add(self.size)
            self.tell(None, f"pictures of {self.size} pixels.")
        return {**batch, "pixel_values": at_size(batch["pixel_values"], self.size)}


def prepare_for_sizes(model: nn.Module, args: ClipTrainingArguments) -> None:
    """Let `model` train at the sizes that the arguments name, and on the share of the patches that they leave.

    Raises:
        ClipDomainError: a size that is no multiple of the patch, or a tower whose positions cannot be interpolated or
            whose patches cannot be left out.
    """
    if args.resolutions:
        accept_any_size(model)
    for size in args.image_sizes or ():
        check_image_size(model, size)
    install_patch_dropout(model, args.patch_dropout)


def attach_curriculum(trainer: Any) -> ResolutionCurriculum | None:
    """That of the trainer's `args.resolutions`, whose last size is the model's; `None` without any.

    Raises:
        ClipDomainError: a size that is no multiple of the patch, a model of another size than the last, or sizes that
            are yet to be chosen.
    """
    args, model = trainer.args, trainer.model
    if args.resolutions is None:
        return None
    if args.resolutions == "auto":
        raise ClipDomainError(
            "--resolutions auto is for the command, which measures what a step costs: give ClipTrainer sizes."
        )
    for size in args.resolutions:
        check_image_size(model, size)
    last, own = args.resolutions[-1], image_size_of(model)
    if last != own:
        raise ClipDomainError(
            f"--resolutions end at {last} pixels, and the model is one for {own}. Before the trainer and its data are made: "
            f"`model, processor = at_image_size(model, processor, {last})` (hf_clip_domain.models.image_positions)."
        )
    positions = find_image_positions(model)
    patch = 1 if positions is None else positions.patch
    schedule = ResolutionSchedule(
        tuple(args.resolutions), args.resolution_schedule, args.resolution_warmup, patch, args.seed
    )
    curriculum = ResolutionCurriculum(schedule, trainer._tell)
    trainer.add_callback(curriculum)
    if isinstance(args.micro_batch_size, int):
        trainer.steps.level = TokenLevel(model, args.micro_batch_size, args.patch_dropout)
    return curriculum
