"""A finished run's folder as a version of a registered model.

A version is a pyfunc model that MLflow serves by itself; its `artifacts/model` holds the files of the folder that
`push` would publish, which everything else here loads. What is worth asking the registry for stands in its tags.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_clip_domain import __version__
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation import EvaluationReport
from hf_clip_domain.models.exported.record import find_record
from hf_clip_domain.models.fingerprint import fingerprint
from hf_clip_domain.models.image_sizes import image_settings
from hf_clip_domain.models.positions import text_capacity
from hf_clip_domain.ops.drift.reference import REFERENCE_FILE
from hf_clip_domain.ops.tracking import Journal, MlflowStore
from hf_clip_domain.ops.tracking.journal import Entry
from hf_clip_domain.ops.tracking.record import without_secrets
from hf_clip_domain.ops.tracking.store import safe_key
from hf_clip_domain.ops.tracking.tracker import EXPERIMENT, FOLDER
from hf_clip_domain.serving.canary import draw_canary
from hf_clip_domain.serving.registry import REGISTERED_FOLDER, require_mlflow
from hf_clip_domain.sharing.publication import Publication

CONTENT_TAG = "content_sha256"
# What is told about a model: it may differ where the model is the same.
_ABOUT = (".md", ".html", ".png", "evaluation.json", "run.yaml", "wise_ft.json", "LICENSE", "NOTICE")
# Of a report's figures those that do not judge the model by themselves; the report goes with the model.
_BESIDE = re.compile(r"(^|/)(chance|candidates|queries|classes|rows|triplets|within_label|across_label)")
_CODE = Path(__file__).with_name("pyfunc_model.py")
_NAME = re.compile(r"[\w\-. ]+")


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name, number: as in `models:/name/number`.
        run_id: of the tracked run that made it.
        tags: multimodal facts, metrics (see `describe_model`) and the gate's decision.
    """

    name: str
    number: str
    run_id: str
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"


@contextmanager
def registry_client() -> Iterator[Any]:
    """MLflow's client of `MLFLOW_TRACKING_URI`; whatever it raises is one sentence.

    Raises:
        ClipDomainError: MLflow is not installed, or the registry does not answer or refuses.
    """
    mlflow = require_mlflow()
    try:
        yield mlflow.MlflowClient()
    except ClipDomainError:
        raise
    except Exception as error:  # the registry's stores raise of every kind
        raise ClipDomainError(f"the model registry says: {' '.join(str(error).split())[:400]}") from error


def check_name(name: str) -> None:
    """Raises:
    ClipDomainError: MLflow would take the name for something else.
    """
    if not _NAME.fullmatch(name):
        raise ClipDomainError(f"{name!r}: expected the name of a registered model: letters, digits, '-', '_', '.'.")


def register(folder: str | Path, name: str) -> tuple[Version, bool]:
    """Log a folder as a servable model and register it; a model that is registered already stays as it is.

    Args:
        folder: a finished run's, a merged model's, or an export's.
        name: of the registered model, made when there is none.

    Returns:
        The version, and whether it is new.

    Raises:
        ClipDomainError: see `Publication.of`; no whole model in the folder, or the registry refuses.
    """
    check_name(name)
    folder = Path(folder)
    publication = Publication.of(folder)
    if "config.json" not in publication.files:
        raise ClipDomainError(
            f"{folder} holds an adapter without its base, which a registered model must not depend on: train with "
            "--save_adapter merged, or register what `hf-clip-domain export --format safetensors` makes of it."
        )
    content = content_hash(publication)
    if (found := find(name, content=content)) is not None:
        return found, False
    with registry_client() as client:
        logged, run_id = _log(folder, publication, content)
        _ensure_model(client, name)
        tags = {**describe_model(folder), CONTENT_TAG: content}
        made = client.create_model_version(
            name, logged.model_uri, run_id=run_id, model_id=logged.model_id, tags=_fitting(tags)
        )
    return _version(made), True


def find(
    name: str, *, alias: str | None = None, number: str | None = None, content: str | None = None
) -> Version | None:
    """The version that an alias, a number, or the hash of a model's files means; `None` when there is none.

    Raises:
        ClipDomainError: the registry cannot be asked.
    """
    mlflow = require_mlflow()
    with registry_client() as client:
        if content is not None:
            same = client.search_model_versions(f"name = '{name}' and tags.{CONTENT_TAG} = '{content}'")
            return _version(same[0]) if same else None
        try:
            found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
        except mlflow.exceptions.MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return _version(found)


def content_hash(publication: Publication) -> str:
    """SHA-256 of the names and bytes of what makes the model, leaving out what is told about it."""
    digest = hashlib.sha256()
    for name in sorted(publication.files):
        if not (name.endswith(_ABOUT) or name.startswith(_ABOUT)):
            digest.update(f"{name}\0".encode())
            with open(publication.folder / name, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def describe_model(folder: Path) -> dict[str, str]:
    """What the registry tells of a model without opening it: sizes, similarity, domain, base, metrics."""
    embedder = ClipEmbedder.from_pretrained(folder)
    record = find_record(folder)
    tags = {
        "architecture": embedder.model.config.model_type,
        "format": record.format if record is not None else "safetensors",
        "modalities": "image,text",
        "resolution": str(image_settings(embedder.processor)[0]),
        "text_length": str(text_capacity(embedder.model)),
        "similarity": getattr(embedder.similarity_function, "__name__", type(embedder.similarity_function).__name__),
        "weights_sha256": fingerprint(embedder.model),  # by which monitoring knows it
        "domain": embedder.domain.name if embedder.domain is not None else "",
    }
    if (folder / "evaluation.json").is_file():
        report = EvaluationReport.load(folder)
        tags |= {"base_model": report.base_model, "dataset": report.dataset}
        told = {
            name: value for name, value in report.after.items() if math.isfinite(value) and not _BESIDE.search(name)
        }
        tags |= {f"metric.{safe_key(name)}": f"{value:.6g}" for name, value in told.items()}
    return {name: value for name, value in tags.items() if value}


def _log(folder: Path, publication: Publication, content: str) -> tuple[Any, str]:
    """The model logged with the run that made it, or, of a folder that no tracked run made, with a run of its own."""
    import mlflow

    store, now = MlflowStore(), round(1000 * time.time())
    entries = Journal(folder / FOLDER).entries[:1] if (folder / FOLDER).is_dir() else []
    tracked = bool(entries)
    if not tracked:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        of = {"name": folder.resolve().name, "experiment": experiment, "time": now, "key": f"model:{content}"}
        entries = [Entry("run", of)]
    store.apply(entries)
    with tempfile.TemporaryDirectory() as scratch:
        inside = Path(scratch) / REGISTERED_FOLDER.name
        for name in publication.files:  # as they are here: the registry is the user's own, unlike the Hub
            (inside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, inside / name)
        if (folder / REFERENCE_FILE).is_file():
            shutil.copyfile(folder / REFERENCE_FILE, inside / REFERENCE_FILE)
        # Named here and not by `Model.log`, which would put it into whatever experiment is the active one.
        run = store.client.get_run(store.run_id)
        model = store.client.create_logged_model(run.info.experiment_id, "model", store.run_id, params=run.data.params)
        logged = mlflow.models.Model.log(
            artifact_path=None,
            model_id=model.model_id,
            flavor=mlflow.pyfunc,
            run_id=store.run_id,
            python_model=str(_CODE),
            artifacts={"folder": str(inside)},
            signature=signature(),
            input_example=(input_example(), {"task": "embeddings"}),
            pip_requirements=_requirements(folder),
        )
    if not tracked:
        store.apply([Entry("end", {"status": "FINISHED", "time": now})])
    return logged, store.run_id


def signature() -> Any:
    """What `ClipPyfunc` takes: rows of base64 pictures and texts, and the params `task` and `labels`."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    columns = [ColSpec(DataType.string, name, required=False) for name in ("image", "text")]
    params = [ParamSpec("task", DataType.string, "embeddings"), ParamSpec("labels", DataType.string, [], shape=(-1,))]
    return ModelSignature(inputs=Schema(columns), params=ParamSchema(params))


def input_example() -> Any:
    """One row with both columns."""
    import pandas as pd

    return pd.DataFrame({"image": [base64.b64encode(draw_canary(0)).decode()], "text": ["soft blots of colour"]})


def _requirements(folder: Path) -> list[str]:
    record = find_record(folder)
    extra = f"[{record.format}]" if record is not None and record.format != "safetensors" else ""
    pinned = {name: importlib.metadata.version(name).partition("+")[0] for name in ("mlflow", "torch", "transformers")}
    return [f"hf-clip-domain{extra}=={__version__}", *(f"{name}=={version}" for name, version in pinned.items())]


def _ensure_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _fitting(tags: dict[str, str]) -> dict[str, str]:
    return {name: without_secrets(value)[:5000] for name, value in tags.items()}  # a column of the database


def _version(found: Any) -> Version:
    return Version(found.name, str(found.version), found.run_id or "", dict(found.tags))
