"""Models by their name in an MLflow registry: `models:/name@alias` and `models:/name/3`."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from hf_clip_domain._optional import require
from hf_clip_domain.errors import ClipDomainError

_URI = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>\d+))")

# Where a version made by `hf-clip-domain register` holds the run's folder; one that was logged otherwise is a folder
# with a model by itself.
REGISTERED_FOLDER = Path("artifacts/model")
# Fetched files of the model that serves and of the one before it; what was fetched earlier is removed.
_KEPT = 2
_fetched: deque[str] = deque()


@dataclass(frozen=True)
class Source:
    """Where a model's files are.

    Attributes:
        path: folder, Hub id or `starter`: what `ClipEmbedder.from_pretrained` takes.
        version: the registry's; `None` for a model from elsewhere.
    """

    path: str
    version: str | None = None


def is_registered(name: str) -> bool:
    """Whether a name is a registry's URI."""
    return name.startswith("models:/")


def has_alias(name: str) -> bool:
    """Whether a name may come to mean another version."""
    return is_registered(name) and "@" in name


def pinned(name: str, version: str | None) -> str:
    """A registered model's name at one version; `None` leaves it as it is."""
    return name if version is None else f"models:/{re.split('[@/]', name.removeprefix('models:/'))[0]}/{version}"


def find_version(uri: str) -> str:
    """The version that a URI means now.

    Raises:
        ClipDomainError: no such form, no such model, or the registry cannot be asked.
    """
    found = _URI.fullmatch(uri)
    if found is None:
        raise ClipDomainError(f"{uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION.")
    if found["version"]:
        return found["version"]
    mlflow = require_mlflow()
    try:
        return str(mlflow.MlflowClient().get_model_version_by_alias(found["name"], found["alias"]).version)
    except Exception as error:  # the registry's stores raise of every kind
        raise ClipDomainError(f"{uri}: the registry says: {' '.join(str(error).split())}") from error


def local_name(name: str) -> str:
    """What `load_model` takes for a name that may be a registry's, fetched once a process; see `resolve`."""
    return _path_of(name, os.environ.get("MLFLOW_TRACKING_URI")) if is_registered(name) else name


@functools.cache
def _path_of(name: str, registry: str | None) -> str:
    return resolve(name).path


def resolve(name: str, into: str | None = None) -> Source:
    """The files behind a name, downloaded where a registry holds them; any other name is passed on.

    Args:
        into: folder to download to, which is the caller's to remove. Without, files stay until the process ends or has
            fetched two other versions, so that a server that follows an alias for months fills no disk.

    Raises:
        ClipDomainError: as `find_version`, or the files cannot be fetched.
    """
    if not is_registered(name):
        return Source(name)
    version = find_version(name)
    mlflow = require_mlflow()
    model = _URI.fullmatch(name)["name"]
    try:
        folder = mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/{model}/{version}", dst_path=tempfile.mkdtemp(dir=into) if into else _new_folder()
        )
    except Exception as error:
        raise ClipDomainError(f"{name}: version {version} cannot be fetched: {' '.join(str(error).split())}") from error
    inside = Path(folder) / REGISTERED_FOLDER
    return Source(str(inside) if inside.is_dir() else folder, version)


def require_mlflow() -> ModuleType:
    """MLflow, with the patience of a command: its own seven tries of a registry that is away take minutes.

    Raises:
        ClipDomainError: it is not installed; names the extra.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return require("mlflow", extra="mlflow")


def _new_folder() -> str:
    if not _fetched:
        atexit.register(lambda: [shutil.rmtree(folder, ignore_errors=True) for folder in _fetched])
    _fetched.append(tempfile.mkdtemp(prefix="hf-clip-domain-"))
    while len(_fetched) > _KEPT:
        shutil.rmtree(_fetched.popleft(), ignore_errors=True)
    return _fetched[-1]
