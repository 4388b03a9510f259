"""A model and its processor from the Hub, a folder, or the package."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.positions import stretch_text_positions

STARTER = "starter"
_STARTER_FOLDER = Path(__file__).parent / "starter"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def load_model(
    name_or_path: str, *, max_text_length: int | None = None, revision: str | None = None
) -> tuple[PreTrainedModel, Any]:
    """A dual encoder in float32 and its processor.

    Args:
        name_or_path: `"starter"` (shipped with the package), a local folder, or a Hub id.
        max_text_length: stretch the text tower to so many tokens (see `stretch_text_positions`).
        revision: branch, tag or commit on the Hub.

    Raises:
        ClipDomainError: an unreachable or unknown Hub id, a folder without a (whole) model or processor, or a model
            that is no dual encoder; says what is missing and what to do.
    """
    source, is_folder = _resolve(name_or_path)
    options = {} if is_folder else {"revision": revision}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        if not hasattr(config, "text_config") and not hasattr(config, "text"):
            raise ClipDomainError(
                f"{name_or_path} is a {config.model_type} model, no dual encoder of images and texts: expected CLIP, "
                "SigLIP or a vision-text-dual-encoder."
            )
        model = AutoModel.from_pretrained(source, dtype=torch.float32, **options)
        processor = AutoProcessor.from_pretrained(source, **options)
    except ClipDomainError:
        raise
    except SafetensorError as error:
        raise ClipDomainError(f"{name_or_path}: the weights are damaged or cut short ({error}).") from error
    except (OSError, ValueError, KeyError, RuntimeError, HFValidationError) as error:
        raise _explained(name_or_path, is_folder, error) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ClipDomainError(
            f"{name_or_path} has no processor for both images and texts (preprocessor_config.json and tokenizer files "
            "are needed): save one beside the model with `processor.save_pretrained(folder)`."
        )
    if max_text_length is not None:
        stretch_text_positions(model, processor.tokenizer, max_text_length)
    return model, processor


def _resolve(name_or_path: str) -> tuple[str, bool]:
    """What to hand to `from_pretrained`, and whether it is a folder."""
    if name_or_path == STARTER:
        return str(_STARTER_FOLDER), True
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        _check_folder(path)
        return str(path), True
    if path.is_file():
        raise ClipDomainError(f"{name_or_path} is a file: give the folder that holds config.json and the weights.")
    looks_local = name_or_path.startswith((".", "/", "~", "\\")) or name_or_path.count("/") > 1
    if looks_local:
        there = [other.name for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, there, n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise ClipDomainError(f"--model_name_or_path {name_or_path}: no such folder.{hint}")
    return name_or_path, False


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        nested = [folder.name for folder in sorted(path.iterdir()) if (folder / "config.json").is_file()]
        hint = f" It holds {', '.join(nested)}: name one of these." if nested else ""
        raise ClipDomainError(f"{path} holds no model: config.json is missing.{hint}")
    if not any(found for pattern in _WEIGHTS for found in path.glob(pattern)):
        raise ClipDomainError(f"{path} holds a configuration but no weights: model.safetensors is missing.")


def _explained(name: str, is_folder: bool, error: Exception) -> ClipDomainError:
    causes = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < 10:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if is_folder:
        return ClipDomainError(f"{name} could not be loaded: {first_line}")
    local = (
        f"To use a local folder: `hf download {name} --local-dir FOLDER` where there is a network, then "
        "--model_name_or_path FOLDER."
    )
    if any(isinstance(found, GatedRepoError) for found in causes):
        return ClipDomainError(f"{name} on the Hub is gated: accept its terms there and log in with `hf auth login`.")
    if any(isinstance(found, RevisionNotFoundError) for found in causes):
        return ClipDomainError(f"{name} on the Hub has no such revision.")
    if any(isinstance(found, RepositoryNotFoundError) for found in causes):
        return ClipDomainError(
            f"{name} is neither a local folder nor a model on the Hub that you may read (a private one needs "
            f"`hf auth login`). {local}"
        )
    return ClipDomainError(
        f"{name} could not be reached on the Hub and is not in the local cache ({first_line}). {local}"
    )
