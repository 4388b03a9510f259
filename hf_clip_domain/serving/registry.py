"""Models by their name in an MLflow registry: `models:/name@alias` and `models:/name/3`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hf_clip_domain._optional import require
from hf_clip_domain.errors import ClipDomainError

_URI = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>\d+))")

# Where a version made by `hf-clip-domain register` holds the run's folder; one that was logged otherwise is a folder
# with a model by itself.
REGISTERED_FOLDER = Path("artifacts/model")


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
    mlflow = require("mlflow", extra="mlflow")
    try:
        return str(mlflow.MlflowClient().get_model_version_by_alias(found["name"], found["alias"]).version)
    except Exception as error:  # the registry's stores raise of every kind
        raise ClipDomainError(f"{uri}: the registry says: {' '.join(str(error).split())}") from error


def resolve(name: str) -> Source:
    """The files behind a name, downloaded where a registry holds them; any other name is passed on.

    Raises:
        ClipDomainError: as `find_version`, or the files cannot be fetched.
    """
    if not is_registered(name):
        return Source(name)
    version = find_version(name)
    mlflow = require("mlflow", extra="mlflow")
    model = _URI.fullmatch(name)["name"]
    try:
        folder = mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{model}/{version}")
    except Exception as error:
        raise ClipDomainError(f"{name}: version {version} cannot be fetched: {' '.join(str(error).split())}") from error
    inside = Path(folder) / REGISTERED_FOLDER
    return Source(str(inside) if inside.is_dir() else folder, version)
