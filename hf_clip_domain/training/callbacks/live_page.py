"""Keeps the page of a run up to date while it goes; from the trainer's log, so that a resumed run's goes on."""

from __future__ import annotations

import math
import os
import time
from datetime import datetime
from pathlib import Path

from transformers import TrainerState, TrainingArguments
from transformers.utils import logging

from hf_clip_domain.training.live_page import RunPage

logger = logging.get_logger(__name__)

SECONDS = 10.0  # between two writings, at least, but for evaluations and the end


class LivePage:
    """Writes `file` whole or not at all. A disk that takes no page costs the page and not the run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def begin(self, state: TrainerState, args: TrainingArguments) -> None:
        """A new page, to be written by the first update."""
        metric = args.metric_for_best_model
        metric = metric if metric is None or metric.startswith("eval_") else f"eval_{metric}"
        self._page = RunPage(self.file.resolve().parent.name, metric)  # no path: the folder may be shared
        self._seen, self._written = 0, -math.inf
        self._start = (time.monotonic(), state.global_step)

    def update(self, state: TrainerState, *, at_once: bool = False) -> None:
        """Take up what was logged, and write the page if it is time."""
        now = time.monotonic()
        if not at_once and now - self._written < SECONDS:
            return
        page = self._page
        for entry in state.log_history[self._seen :]:
            page.add(entry)
        self._seen = len(state.log_history)
        page.step, page.max_steps, page.updated = state.global_step, state.max_steps, datetime.now().astimezone()
        start, first = self._start
        if state.global_step > first:
            page.seconds_left = (now - start) / (state.global_step - first) * (state.max_steps - state.global_step)
        self._write(page.to_html())
        self._written = now

    def end(self, state: TrainerState, reason: str | None) -> None:
        """Finished, or failed for a reason."""
        self._page.state, self._page.reason = ("finished", None) if reason is None else ("failed", reason)
        self.update(state, at_once=True)

    def _write(self, text: str) -> None:
        part = self.file.with_suffix(".html.part")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(text, encoding="utf-8")
            os.replace(part, self.file)
        except OSError as error:
            logger.warning_once(f"{self.file.name} is not written: {error.strerror}.")
