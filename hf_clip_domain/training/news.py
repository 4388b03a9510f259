"""How a run goes, told where it is wanted: events in the log and on the live page, the great ones as notifications.

The outermost `with` around a run decides how it ended, so that the command also tells of a failure before the first
step or after the last one, and `ClipTrainer.train()` of one in between.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.notification import Notifier, describe
from hf_clip_domain.training.callbacks.live_page import LivePage

TERMINATED = 128 + signal.SIGTERM


class RunNews(TrainerCallback):
    """Follows a run from its `with` and as a callback of its trainer.

    The first process tells. The end of a run that failed is told by the process that failed first, since the others
    only see that it is gone, or are killed before they can say anything.
    """

    def __init__(self, args: ClipTrainingArguments) -> None:
        self.folder, self.process, self.processes = Path(args.output_dir), args.process_index, args.world_size
        self.page = LivePage(self.folder / "run.html") if args.live_page and self.process == 0 else None
        self.notifier = Notifier(args.notify) if args.notify is not None else None
        self._listening = bool(args.live_page or args.notify)
        self._state: TrainerState | None = None
        self._best: float | None = None
        self._told: set[str] = set()
        self._depth, self._handler = 0, None

    def tell(self, kind: str | None, text: str, **more: Any) -> None:
        """Something worth knowing happened in this step.

        It joins `log_history` as `{"step": ..., "event": text}` and with it checkpoints and the live page.

        Args:
            kind: `out_of_memory` for a step that was repeated in smaller pieces; the first of a kind is a
                notification, too. `None` for what is nobody's business but the page's.
            text: a sentence.
            more: further fields of the notification.
        """
        if self._state is not None:
            self._state.log_history.append({"event": text, "step": self._state.global_step})
            if self.page is not None:
                self.page.update(self._state)
        if kind is not None and kind not in self._told and self.process == 0:
            self._notify(kind, text, **more)
            self._told.add(kind)

    # As a callback

    def on_train_begin(self, args, state, control, **kwargs):
        self._state, self._best = state, state.best_metric
        if self.page is not None:
            self.page.begin(state, args)
        resumed = f"Training resumed at step {state.global_step}" if state.global_step else "Training started"
        self.tell("started", f"{resumed}, for {state.max_steps} steps.")

    def on_log(self, args, state, control, **kwargs):
        if self.page is not None:
            self.page.update(state)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self.page is not None:
            self.page.update(state, at_once=True)
        name = args.metric_for_best_model
        value = (metrics or {}).get(name if not name or name.startswith("eval_") else f"eval_{name}")
        if value is None:
            return
        sign = 1 if args.greater_is_better else -1
        if self._best is None or sign * value > sign * self._best:
            before = "" if self._best is None else f" (before: {self._best:.4g})"
            self._best = value
            if self.process == 0:
                self._notify("improved", f"Best {name} so far: {value:.4g}{before}.", metric=name, value=value)

    # Around the run

    def __enter__(self) -> RunNews:
        self._depth += 1
        if self._depth == 1:
            self._told.clear()
            if self.process == 0:
                for marker in self.folder.glob(".failed-*"):
                    marker.unlink(missing_ok=True)
            self._heed_sigterm()
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        self._depth -= 1
        if self._depth:
            return
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
            self._handler = None
        if error is None:
            if self.process == 0:
                self._notify("finished", "The run has finished.", **self._last_scores())
            reason = None
        else:
            reason, is_first = self._claim(_reason(error))
            if is_first:
                self._notify("failed", f"The run has failed: {reason}", reason=reason)
        if self.page is not None and self._state is not None:
            self.page.end(self._state, reason)
        if self.notifier is not None:
            self.notifier.close()
        self._state = None

    def _claim(self, reason: str) -> tuple[str, bool]:
        """The reason of the process that failed first, and whether it is this one."""
        if self.processes == 1 or not self._listening:
            return reason, True
        marker = self.folder / f".failed-{os.getppid()}"  # processes of one run have one parent, the launcher
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(marker, "x", encoding="utf-8") as file:
                file.write(reason)
        except FileExistsError:
            return marker.read_text(encoding="utf-8") or reason, False
        except OSError:  # a full or missing disk may be what the run failed of: better told twice than not at all
            pass
        return reason, True

    def _heed_sigterm(self) -> None:
        """End by an exception, as Ctrl-C does, so that the run can still say so; unless somebody else handles it."""
        main = threading.current_thread() is threading.main_thread()
        if not self._listening or not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return
        owner = os.getpid()

        def end(*_):
            if os.getpid() != owner:  # a worker that was forked from the run ends as if nothing had been set
                os._exit(TERMINATED)
            raise SystemExit(TERMINATED)

        self._handler = signal.signal(signal.SIGTERM, end)

    def _last_scores(self) -> dict[str, Any]:
        history = self._state.log_history if self._state is not None else []
        scores = next((entry for entry in reversed(history) if any(key.startswith("eval_") for key in entry)), {})
        scores = {key: value for key, value in scores.items() if key.startswith("eval_")}
        return {"scores": scores} if scores else {}

    def _notify(self, kind: str, text: str, **more: Any) -> None:
        if self.notifier is None:
            return
        message = {"event": kind, "run": self.folder.resolve().name, "text": text}
        message["time"] = datetime.now(UTC).isoformat(timespec="seconds")
        if self._state is not None:
            message |= {"step": self._state.global_step, "max_steps": self._state.max_steps}
        if self.processes > 1:
            message["process"] = self.process
        with suppress(RuntimeError):  # no thread can be started while the interpreter ends
            self.notifier.send(message | more)


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted from the keyboard"
    if isinstance(error, SystemExit) and error.code == TERMINATED:
        return "terminated (SIGTERM)"
    return str(error) if isinstance(error, ClipDomainError) else describe(error)
