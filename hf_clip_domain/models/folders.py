"""Which folder a model's name means, and whether a model is in it, asked before any library is."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_clip_domain.errors import ClipDomainError

STARTER = "starter"
_NAMES = (STARTER, "towers")
_STARTER_FOLDER = Path(__file__).parent / "starter"
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_LFS_POINTER = b"version https://git-lfs"


def find_folder(name_or_path: str | Path) -> Path | None:
    """The folder that a name stands for, checked to hold a model; `None` when it can only be a Hub id.

    Raises:
        ClipDomainError: a path without a folder (with the nearest name there is), a name that is neither a folder nor
            a Hub id, or a folder without a whole model.
    """
    name = str(name_or_path)
    if name == STARTER:
        return _STARTER_FOLDER
    if not name.strip():
        raise ClipDomainError("--model_name_or_path is empty: give a Hub id, a folder, 'starter' or 'towers'.")
    path = Path(name).expanduser()
    if path.is_dir():
        _check_folder(path)
        return path
    if path.is_file():
        raise ClipDomainError(f"{name} is a file: give the folder that holds config.json and the weights.")
    # A Hub id is `name` or `owner/name`; everything else with a separator is a path, and never sent to the Hub.
    if isinstance(name_or_path, Path) or name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1:
        raise ClipDomainError(f"--model_name_or_path {name}: no such folder.{near_miss(name)}")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ClipDomainError(
            f"--model_name_or_path {name}: there is no such folder, and a Hub id looks like owner/name."
            f"{near_miss(name)}"
        ) from error
    return None


def near_miss(name: str) -> str:
    """` Did you mean ...?` when a folder (or `starter`, `towers`) is spelt almost so, else nothing."""
    path = Path(name).expanduser()
    there = [other.name for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
    found = difflib.get_close_matches(path.name, there, n=1)
    if found:
        return f" Did you mean {path.parent / found[0]}?"
    named = difflib.get_close_matches(name, _NAMES, n=1)
    return f" Did you mean {named[0]}?" if named else ""


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        nested = [folder.name for folder in sorted(path.iterdir()) if (folder / "config.json").is_file()]
        hint = f" It holds {', '.join(nested)}: name one of these, as in {path / nested[-1]}." if nested else ""
        raise ClipDomainError(f"{path} holds no model: config.json is missing.{hint}")
    index = path / "model.safetensors.index.json"
    weights = [found for pattern in _WEIGHTS for found in path.glob(pattern)]
    if not weights and not index.is_file() and (path / "export.json").is_file():
        raise ClipDomainError(
            f"{path} is an export to embed with (ClipEmbedder.from_pretrained, evaluate); here the model it was made of is "
            "needed, which its export.json names as source."
        )
    if not weights and not index.is_file():
        raise ClipDomainError(
            f"{path} holds a configuration but no weights: model.safetensors is missing. Copy it there, or save the "
            "model again with `model.save_pretrained(folder)`."
        )
    for file in weights:
        with open(file, "rb") as stream:
            if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ClipDomainError(f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` in {path}.")
    if index.is_file() and not (path / "model.safetensors").is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ClipDomainError(f"{index} is damaged: copy it again.") from error
        missing = [shard for shard in shards if not (path / shard).is_file()]
        if missing:
            raise ClipDomainError(f"{path} lacks {len(missing)} of {len(shards)} weight files, such as {missing[0]}.")
