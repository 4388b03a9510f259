"""Where the time of a training step goes: a stopwatch that is switched from phase to phase.

On an accelerator the host only hands out work, so its clock says little. There the switches are events in the device's
own queue: a phase lasts from when the device reaches its first piece of work to when it reaches the next phase's. Time
in which the device waits for the host then counts for the phase that the host is in; above all, `data` is the time for
which the device had nothing to do because no batch was there. Nothing is synchronised but when the times are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

PHASES = ("data", "forward", "backward", "optimizer")
_MANY = 1024  # marks that are kept before they are added up


class Stopwatch:
    """Adds up seconds by phase; runs from `switch(phase)` until `switch(None)`.

    >>> stopwatch.switch("data")
    >>> batch = next(batches)
    >>> with stopwatch.forward():  # what follows is backward
    ...     loss = model(batch)
    >>> loss.backward()
    >>> stopwatch.switch(None)
    >>> stopwatch.read()  # {"data": 0.1, "forward": 0.3, "backward": 0.6, "optimizer": 0.0}
    """

    def __init__(self, device: torch.device) -> None:
        self._mark, self._between = _clock(device)
        self.reset()

    @property
    def running(self) -> bool:
        return bool(self._marks) and self._marks[-1][0] is not None

    def reset(self) -> None:
        """Forget everything and stand still."""
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._marks: list[tuple[str | None, Any]] = []

    def switch(self, phase: str | None) -> None:
        """From now on the time belongs to `phase`; `None` stops the watch."""
        self._marks.append((phase, self._mark()))
        if len(self._marks) > _MANY:
            self._add_up()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around the forward pass of a step; does nothing while the watch stands still, as in evaluation."""
        if self.running:
            self.switch("forward")
        yield
        if self.running:
            self.switch("backward")

    def read(self) -> dict[str, float]:
        """Seconds by phase since the last reading; waits for the device to reach the last switch."""
        self._add_up()
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds

    def _add_up(self) -> None:
        for (phase, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if phase is not None:
                self._seconds[phase] += self._between(start, end)
        del self._marks[:-1]


def _clock(device: torch.device) -> tuple[Callable[[], Any], Callable[[Any, Any], float]]:
    """How to mark a moment on the device, and the seconds between two marks."""
    if device.type not in ("cuda", "mps"):
        return time.perf_counter, lambda start, end: end - start
    make = torch.cuda.Event if device.type == "cuda" else torch.mps.event.Event

    def mark() -> Any:
        event = make(enable_timing=True)
        event.record()
        return event

    def between(start: Any, end: Any) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1000

    return mark, between
