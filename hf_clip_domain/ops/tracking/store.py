"""Journal entries as calls of MLflow's client. Every call may be made twice with the effect of once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_clip_domain._optional import require
from hf_clip_domain.ops.tracking.journal import Entry

KEY_TAG = "hf_clip_domain.run_key"
PARENT_TAG = "mlflow.parentRunId"  # the tracking page shows the run below this one
# What the server takes at most: characters of a key, a parameter's and a tag's value, values a call.
_KEY, _PARAM, _TAG = 250, 6000, 8000
_METRICS_A_CALL, _OTHERS_A_CALL = 1000, 100

logger = logging.get_logger(__name__)


class MlflowStore:
    """One run on a tracking server.

    Args:
        tracking_uri: as MLflow takes it (`http://...`, `sqlite:///...`); default: `MLFLOW_TRACKING_URI`.

    Raises:
        ClipDomainError: MLflow is not installed.
    """

    def __init__(self, tracking_uri: str | None = None) -> None:
        require("mlflow", extra="mlflow")
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri)
        self._experiment, self._key = "", ""
        self._run_ids: dict[str, str] = {}

    def apply(self, entries: Sequence[Entry]) -> None:
        """Deliver entries of one journal, in their order; the first of a journal is its `run`.

        Raises:
            Exception: what MLflow's client raises where the server is away or refuses; nothing is lost by calling
                again with the same entries.
        """
        for (of, kind), group in groupby(entries, lambda entry: (entry.of, entry.kind)):
            contents = [entry.content for entry in group]
            if kind == "run":
                self._begin(of, contents[0])
                continue
            run_id = self._run_id(of)
            if kind == "metrics":
                self._send_metrics(run_id, contents)
            for content in contents if kind != "metrics" else ():
                match kind:
                    case "params":
                        self._send_params(run_id, content["values"])
                    case "tags":
                        self._send_tags(run_id, content["values"])
                    case "artifact":
                        self._send_artifact(run_id, Path(content["path"]), content["folder"])
                    case "end":
                        self.client.set_terminated(run_id, content["status"], content["time"])

    def _begin(self, of: str, content: dict[str, Any]) -> None:
        """Find or create the run; the answer to an earlier creation may have been lost."""
        if not of:
            experiment = self.client.get_experiment_by_name(content["experiment"])
            self._experiment = experiment.experiment_id if experiment else self._create(content["experiment"])
            self._key = content["key"]
        self._run_ids[of] = self._by_key(content["key"]) or self._create_run(of, content)

    def _create(self, experiment: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.create_experiment(experiment)
        except MlflowException:  # two runs may begin at the same moment
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                raise
            return found.experiment_id

    def _create_run(self, of: str, content: dict[str, Any]) -> str:
        tags = {KEY_TAG: content["key"]}
        if of:
            tags[PARENT_TAG] = self._run_id("")
        return self.client.create_run(self._experiment, content["time"], tags, content["name"]).info.run_id

    def _run_id(self, of: str) -> str:
        if of not in self._run_ids:  # begun by an earlier process
            self._run_ids[of] = self._by_key(f"{self._key}:{of}")
        return self._run_ids[of]

    @property
    def run_id(self) -> str:
        """Of the run itself; there is one once its first entry has been delivered."""
        return self._run_ids[""]

    def _by_key(self, key: str) -> str | None:
        found = self.client.search_runs([self._experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return found[0].info.run_id if found else None

    def _send_metrics(self, run_id: str, contents: Sequence[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        values = [
            Metric(safe_key(name), value, content["time"], content["step"])
            for content in contents
            for name, value in content["values"].items()
        ]
        # The server knows a value by its time and step: one that arrives twice is stored once.
        for start in range(0, len(values), _METRICS_A_CALL):
            self.client.log_batch(run_id, metrics=values[start : start + _METRICS_A_CALL])

    def _send_params(self, run_id: str, values: dict[str, str]) -> None:
        from mlflow.entities import Param

        held = self.client.get_run(run_id).data.params
        new, changed = [], {}
        for name, value in values.items():
            key, value = safe_key(name), shortened(value, _PARAM)
            if key not in held:
                new.append(Param(key, value))
            elif held[key] != value:  # a run that resumed with another setting; parameters cannot be changed
                changed[f"resumed.{key}"] = value
        for start in range(0, len(new), _OTHERS_A_CALL):
            self.client.log_batch(run_id, params=new[start : start + _OTHERS_A_CALL])
        self._send_tags(run_id, changed)

    def _send_tags(self, run_id: str, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(safe_key(name), shortened(value, _TAG)) for name, value in values.items()]
        for start in range(0, len(tags), _OTHERS_A_CALL):
            self.client.log_batch(run_id, tags=tags[start : start + _OTHERS_A_CALL])

    def _send_artifact(self, run_id: str, path: Path, folder: str | None) -> None:
        if path.exists():
            self.client.log_artifact(run_id, str(path), folder)
        else:
            logger.warning(f"{path} was to be sent to the tracking server and is no longer there.")


def safe_key(name: str) -> str:
    """A name with the letters that MLflow takes: `text_to_image/recall@10` is `text_to_image/recall_at_10`."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"))[:_KEY]


def shortened(value: str, limit: int) -> str:
    """At most `limit` characters; what is cut says where the whole stands."""
    note = " ... (whole in parameters.yaml)"
    return value if len(value) <= limit else value[: limit - len(note)] + note
