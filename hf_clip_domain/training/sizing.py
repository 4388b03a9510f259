"""`--micro_batch_size auto`: the micro-batches that the memory of this moment affords."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import TrainerCallback

from hf_clip_domain import memory
from hf_clip_domain.training.agreement import RollCall
from hf_clip_domain.training.memory_model import MOST_PROBED, NOTHING_FITS, MemoryModel
from hf_clip_domain.training.micro_batching import MicroBatches
from hf_clip_domain.training.replay import StepReplay, free_memory, is_out_of_memory

_MARGIN = 0.1  # share of the room that is left free, for what the memory model cannot see
_TIGHT = 0.5  # share of the room above which free blocks are given back, at the price of some time
_GROWTH = 1.25  # a plan is enlarged only for so many times more rows in memory
_PATIENCE = 50  # steps for which nothing is enlarged after a shortage


class MicroBatchSizing(TrainerCallback):
    """Chooses the micro-batches of every step by the memory that is left when it begins.

    A memory model is fitted at the first step of every shape of batch (picture size, caption length). After that the
    plan shrinks as soon as the room would not hold it any more (another program has started, longer captions came), and
    grows when there is clearly more. What is embedded at once changes nothing in the result but rounding.

    Args:
        replay: whose `plan` is chosen.
        fit: fits a model to the inputs of a step.
        to_come: bytes that the step will leave behind (the optimizer's state, before its first step).
        device: whose memory counts.
        call: the processes agree on the smallest plan.
    """

    def __init__(
        self,
        replay: StepReplay,
        fit: Callable[[dict], MemoryModel],
        to_come: Callable[[], int],
        device: torch.device,
        call: RollCall,
    ) -> None:
        self.replay, self.fit, self.to_come, self.device, self.call = replay, fit, to_come, device, call
        self.models: dict[tuple, MemoryModel] = {}
        self.room = 0
        self._started = self._thrifty = False
        self._shortages, self._grow_from = 0, 0

    def on_step_begin(self, args, state, control, **kwargs):
        self._measure()

    def _measure(self) -> None:
        self.room = int((1 - _MARGIN) * max(0, memory.room(self.device) - self.to_come()))

    def choose(self, inputs: dict, number: int) -> None:
        """Set the plan of step `number`."""
        rows = len(inputs["input_ids"])
        if rows < MOST_PROBED:  # no batch to save memory on
            return
        model, plan = self._model(inputs, rows), self.replay.plan
        best = model.plan(rows, self.room)
        if not self._thrifty and self.device.type == "cpu" and model.need(best, rows) > _TIGHT * self.room:
            memory.give_blocks_back()
            self._thrifty = True
            self._measure()
            best = model.plan(rows, self.room)
        if self.replay.shortages > self._shortages:  # the prediction was too low: stay below it for a while
            self._shortages, self._grow_from = self.replay.shortages, number + _PATIENCE
        fits = self._started and model.need(plan, rows) <= self.room
        grows = number >= self._grow_from and best.rows_held(rows) >= _GROWTH * plan.rows_held(rows)
        chosen = plan if fits and not grows else best
        chosen = chosen.at_most(self.call.smallest(chosen.rows_held(rows)), rows)
        if chosen != plan or not self._started:
            self._tell(chosen, rows, model)
        self.replay.plan, self._started = chosen, True

    def _model(self, inputs: dict, rows: int) -> MemoryModel:
        """That of this shape of batch, or of a larger one that fits easily, which needs no probing."""
        shapes = {name: tuple(value.shape[1:]) for name, value in inputs.items() if torch.is_tensor(value)}
        key = (rows, *sorted(shapes.items()))
        if key in self.models:
            return self.models[key]
        for other, model in self.models.items():
            if _covers(other, key) and model.need(MicroBatches(None), rows) <= _TIGHT * self.room:
                return model
        self.models[key] = self._fitted(inputs)
        self._measure()
        return self.models[key]

    def _fitted(self, inputs: dict) -> MemoryModel:
        try:
            return self.fit(inputs)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        free_memory()
        return NOTHING_FITS

    def _tell(self, plan: MicroBatches, rows: int, model: MemoryModel) -> None:
        twice = rows - plan.rows_held(rows)
        sentence = (
            f"micro-batches of {plan.size or rows}, {twice} of {rows} rows embedded twice "
            f"({model.need(plan, rows) / memory.MIB:,.0f} MiB predicted, {self.room / memory.MIB:,.0f} MiB to use)."
        )
        self.replay.tell(None, sentence)


def _covers(larger: tuple, smaller: tuple) -> bool:
    """Whether a batch of the first shape has the same tensors as one of the second, and none of them smaller."""
    if larger[0] < smaller[0] or [name for name, _ in larger[1:]] != [name for name, _ in smaller[1:]]:
        return False
    pairs = ((a, b) for (_, a), (_, b) in zip(larger[1:], smaller[1:], strict=True))
    return all(len(a) == len(b) and all(x >= y for x, y in zip(a, b, strict=True)) for a, b in pairs)
