"""Training steps that fit in memory: micro-batches are chosen, a step that does not fit is run again with smaller ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_clip_domain import memory
from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.losses.gather import is_distributed
from hf_clip_domain.training.agreement import GradientAverage, RollCall
from hf_clip_domain.training.memory_model import MemoryModel
from hf_clip_domain.training.micro_batching import MicroBatches
from hf_clip_domain.training.replay import StepReplay
from hf_clip_domain.training.sizing import MicroBatchSizing
from hf_clip_domain.training.token_level import TokenLevel


class FittingSteps:
    """Runs the steps of a trainer.

    Args:
        args: `micro_batch_size` and `device` are used.
        fit: fits a memory model to the inputs of a step, for `--micro_batch_size auto`.
        to_come: bytes that the step will leave behind.
        tell: called with a kind (`"out_of_memory"`, or `None`) and a sentence when the micro-batches change.

    Attributes:
        replay: holds the micro-batches of the next step. sizing: a callback for the trainer, or `None`.
        level: chooses micro-batches of a fixed size where that of the pictures changes.
    """

    def __init__(
        self,
        args: ClipTrainingArguments,
        fit: Callable[[dict], MemoryModel],
        to_come: Callable[[], int],
        tell: Callable[[str | None, str], None],
    ) -> None:
        memory.prepare_for_training()
        automatic = args.micro_batch_size == "auto"
        self.level: TokenLevel | None = None
        self.roll_call = RollCall(args.device)
        self.replay = StepReplay(MicroBatches(None if automatic else args.micro_batch_size), tell)
        self.sizing = MicroBatchSizing(self.replay, fit, to_come, args.device, self.roll_call) if automatic else None

    def run(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        step: Callable[[dict[str, Any]], torch.Tensor],
        *,
        fill: Callable[[dict[str, Any], int | None], dict[str, Any]] | None,
        number: int,
        average: bool,
    ) -> torch.Tensor:
        """The loss of `step(inputs)`, whose gradients are added to the model's.

        Args:
            model: as the trainer wrapped it. Of weights that are sharded over processes no step can be left half-way:
                it is run once.
            fill: completes the inputs first, given them and a number of rows to do at once.
            number: of the step.
            average: of several processes, average the gradients afterwards.
        """
        several = is_distributed()
        if several and not isinstance(model, DistributedDataParallel):
            return step(inputs if fill is None else fill(inputs, self.replay.plan.size))
        rows = len(inputs["input_ids"] if "input_ids" in inputs else next(iter(inputs.values())))
        run = functools.partial(self.replay.run, model=model, rows=rows, call=self.roll_call)
        whole = inputs if fill is None else run(lambda: fill(inputs, self.replay.plan.size))
        if self.sizing is not None:
            self.sizing.choose(whole, number)
        if self.level is not None:
            self.replay.plan = self.level.plan(whole)

        def attempt():
            with self.roll_call.before_collectives(), model.no_sync() if several else nullcontext():
                loss = step(whole)
            return loss, GradientAverage(model) if several and average else None

        loss, average_gradients = run(attempt)
        if self.level is not None:
            self.level.learn(self.replay.plan, whole)
        if average_gradients is not None:
            average_gradients()
        return loss
