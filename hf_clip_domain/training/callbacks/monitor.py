"""Measures a run while it goes: speed, where the time goes, memory, and how much of the machine is used.

What is measured joins the training log (`log_history`, and with it TensorBoard, MLflow and the like) at every logging
step, and a little of it the progress bar. docs/monitoring.md says what each figure means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import ProgressCallback, TrainerCallback
from transformers.utils import logging

from hf_clip_domain import memory
from hf_clip_domain.training.flops import flops_per_pair, peak_flops
from hf_clip_domain.training.timing import PHASES, Stopwatch

logger = logging.get_logger(__name__)

SPEED, MICRO_BATCH = "pairs_per_second", "micro_batch_size"
PROCESS, PEAK, ROOM = "memory/process_mib", "memory/peak_mib", "memory/room_mib"
SHARES = {phase: f"time_share/{phase}" for phase in PHASES}
ACHIEVED, UTILISATION = "flops/achieved_tflops", "flops/share_of_peak"
KEYS = {SPEED, MICRO_BATCH, PROCESS, PEAK, ROOM, *SHARES.values(), ACHIEVED, UTILISATION}


class RunMonitor(TrainerCallback):
    """Measures between two logging steps; evaluation, checkpoints and logging itself are left out.

    Times and memory are this process's, the speed is that of all processes, the FLOPs are one device's.

    Args:
        device: on which this process trains.
        processes: that train together.
        precision: in which it computes, for the device's peak.
        micro_batch: gives the rows embedded at once, `None` for the whole batch.
        image_sizes: as `ClipTrainingArguments.image_sizes`.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        processes: int,
        precision: torch.dtype,
        micro_batch: Callable[[], int | None],
        image_sizes: list[int] | None = None,
    ) -> None:
        self.device, self.processes, self.precision = device, processes, precision
        self.micro_batch, self.image_sizes = micro_batch, image_sizes
        self.stopwatch = Stopwatch(device)
        self._flops: dict[tuple, float | None] = {}  # of a pair, by the shapes of its batch
        self._peak: memory.Peak | None = None
        self._begin()

    def _begin(self) -> None:
        self.stopwatch.reset()
        self._rows: Counter[tuple] = Counter()
        self._examples: dict[tuple, dict[str, Any]] = {}
        self._batch = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._end_peak()  # of a run that failed
        self._begin()
        self._watch_peak()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.stopwatch.switch("optimizer")

    def on_substep_end(self, args, state, control, **kwargs):
        self.stopwatch.switch("data")

    def on_step_end(self, args, state, control, **kwargs):
        self.stopwatch.switch(None)

    def on_epoch_end(self, args, state, control, **kwargs):
        self.stopwatch.switch(None)  # also where the data ended before the step that was begun

    def on_train_end(self, args, state, control, **kwargs):
        self._end_peak()

    def _watch_peak(self) -> None:
        self._peak = memory.Peak(self.device)
        self._peak.__enter__()

    def _end_peak(self) -> int:
        """Bytes at most since `_watch_peak`; where a thread looks for the peak, it ends here."""
        if self._peak is None:
            return 0
        peak, self._peak = self._peak, None
        peak.__exit__()
        return peak.bytes

    def count(self, batches: Sequence[dict[str, Any]]) -> None:
        """Take note of the batches of the coming step."""
        for batch in batches:
            self._batch = len(batch["input_ids"])
            shapes = tuple(batch[key].shape for key in ("pixel_values", "input_ids") if key in batch)
            self._rows[shapes] += self._batch
            whole = "pixel_values" in batch and len(batch["pixel_values"]) == self._batch
            if not whole:  # pictures whose features are known already: what a pair costs is not told by its shape
                self._flops[shapes] = None
            elif shapes not in self._flops and shapes not in self._examples:
                self._examples[shapes] = {
                    key: rows[:1].clone()  # a view would keep the whole batch
                    for key, rows in batch.items()
                    if torch.is_tensor(rows) and rows.ndim and key != "targets"
                }

    def measure(self, model: nn.Module) -> dict[str, float]:
        """What was measured since the last call, by the names in `KEYS`; nothing without a whole step."""
        seconds = self.stopwatch.read()
        whole, rows = sum(seconds.values()), self._rows
        if not rows or whole <= 0 or self._peak is None:
            return {}
        mib = memory.MIB
        measured = {
            SPEED: rows.total() * self.processes / whole,
            **{SHARES[phase]: seconds[phase] / whole for phase in PHASES},
            PROCESS: memory.used(self.device) / mib,
            PEAK: self._end_peak() / mib,
            ROOM: memory.room(self.device) / mib,
            MICRO_BATCH: min(self.micro_batch() or self._batch, self._batch),
        }
        try:
            measured |= self._flops_in(whole, model)
        except Exception as error:  # of whatever kind, out of memory too: no figure is worth a run
            self._flops |= dict.fromkeys(self._examples)
            logger.warning_once(f"FLOPs are not counted: {type(error).__name__}: {error}")
        self._examples.clear()
        self._rows = Counter()
        self._watch_peak()
        return measured

    def _flops_in(self, seconds: float, model: nn.Module) -> dict[str, float]:
        """Achieved FLOP/s; nothing if there is a batch whose FLOPs are not known."""
        for shapes, example in self._examples.items():
            self._flops[shapes] = flops_per_pair(model, example, self.image_sizes)
        if not all(self._flops[shapes] for shapes in self._rows):
            return {}
        achieved = sum(count * self._flops[shapes] for shapes, count in self._rows.items()) / seconds
        peak = peak_flops(self.device, self.precision)
        return {ACHIEVED: achieved / 1e12} | ({UTILISATION: achieved / peak} if peak else {})


class MonitoredProgress(ProgressCallback):
    """The usual progress bar, with speed, memory and micro-batch on the bar instead of in every printed line."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, {key: value for key, value in logs.items() if key not in KEYS}, **kwargs)
        if self.training_bar is not None and SPEED in logs:
            shown = {"pairs/s": f"{logs[SPEED]:.4g}", "peak MiB": f"{logs[PEAK]:,.0f}"}
            shown["micro"] = f"{logs[MICRO_BATCH]}"
            if UTILISATION in logs:
                shown["of peak FLOP/s"] = f"{logs[UTILISATION]:.0%}"
            self.training_bar.set_postfix(shown, refresh=False)


def attach_monitor(trainer: Any, micro_batch: Callable[[], int | None]) -> RunMonitor:
    """A monitor for the run of `trainer`, which is to call `count` and `measure`; the progress bar shows it."""
    mixed = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(trainer.accelerator.mixed_precision)
    monitor = RunMonitor(
        trainer.args.device,
        processes=trainer.args.world_size,
        precision=mixed or next(trainer.model.parameters()).dtype,
        micro_batch=micro_batch,
        image_sizes=trainer.args.image_sizes,
    )
    trainer.add_callback(monitor)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(MonitoredProgress())
    return monitor
