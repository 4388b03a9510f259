"""A run as MLflow shall know it, from its first setting to its last figure."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback

from hf_clip_domain.ops.tracking.journal import Journal
from hf_clip_domain.ops.tracking.record import flatten, numbers, without_secrets
from hf_clip_domain.ops.tracking.sender import Sender
from hf_clip_domain.ops.tracking.store import MlflowStore

FOLDER, PARAMETERS = "tracking", "parameters.yaml"
EXPERIMENT = "hf-clip-domain"


class Tracker(TrainerCallback):
    """Follows a run from its `with` and as a callback of its trainer; a failure inside is recorded as one.

    Args:
        folder: the run's; the journal is kept in `folder/tracking`.
        name: of the run.
        experiment: default: `MLFLOW_EXPERIMENT_NAME`, or `hf-clip-domain`.
        tracking_uri: default: `MLFLOW_TRACKING_URI`.

    Raises:
        ClipDomainError: MLflow is not installed.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        experiment: str | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        self._store = MlflowStore(tracking_uri)
        self.folder = folder / FOLDER
        self.journal = Journal(self.folder)
        experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        self.journal.begin(name=name, experiment=experiment, time=_now())
        self._sender: Sender | None = None
        self.left = 0  # entries that still wait when the run has ended

    def settings(self, values: Mapping[str, Any]) -> None:
        """The run's settings, whole in `parameters.yaml` and flat as parameters."""
        flat = flatten(dict(values))
        file = self.folder / PARAMETERS
        file.write_text(yaml.safe_dump(flat, sort_keys=True, allow_unicode=True), encoding="utf-8")
        self.journal.add("params", values=flat)
        self.artifacts([file])

    def tags(self, values: Mapping[str, Any]) -> None:
        """Facts that are no settings: commit, dataset revision, versions; those that are `None` are left out."""
        told = {name: without_secrets(str(value)) for name, value in values.items() if value is not None}
        self.journal.add("tags", values=told)

    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Figures of a step; what is no number is left out."""
        self.journal.add_metrics(numbers(dict(values)), step, _now())

    def artifacts(self, paths: Iterable[Path], folder: str | None = None) -> None:
        """Files to keep with the run; those that are not there are left out."""
        for path in paths:
            if path.exists():
                self.journal.add("artifact", path=str(path.resolve()), folder=folder)

    def part(self, name: str, settings: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """A finished run within this one, such as a trial of a search: told whole, and once."""
        self.journal.begin(name, name=name, time=_now())
        self.journal.add("params", name, values=flatten(dict(settings)))
        self.journal.add_metrics(numbers(dict(values)), 0, _now(), name)
        self.journal.add("end", name, status="FINISHED", time=_now())

    # As a callback: what the trainer logs.

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            self.metrics(logs or {}, state.global_step)

    # Around the run

    def __enter__(self) -> Tracker:
        self._sender = Sender(self.journal, self._store)
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        stopped = isinstance(error, KeyboardInterrupt) or (
            isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
        )
        status = "KILLED" if stopped else "FINISHED" if error is None else "FAILED"
        if status == "FAILED":
            self.tags({"error": f"{type(error).__name__}: {error}"})
        self.journal.add("end", status=status, time=_now())
        self.left = self._sender.close()


def _now() -> int:
    return round(1000 * time.time())
