"""A model and its processor from the Hub, a folder, or the package."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
from transformers.utils import cached_file, logging

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.adapters import base_of, find_adapter, merge_adapter
from hf_clip_domain.models.attention import use_sliced_attention
from hf_clip_domain.models.dual_encoder import check_dual_encoder
from hf_clip_domain.models.folders import find_folder, near_miss
from hf_clip_domain.models.image_positions import at_image_size, image_size_of, processor_size
from hf_clip_domain.models.positions import stretch_text_positions, text_capacity
from hf_clip_domain.models.towers.pretrained import MAX_TEXT_LENGTH, TOWERS, load_towers


def load_model(
    name_or_path: str | Path,
    *,
    max_text_length: int | None = None,
    revision: str | None = None,
    attention_slicing: str | int = "auto",
) -> tuple[PreTrainedModel, Any]:
    """A dual encoder in float32, on the CPU and in evaluation mode, and its processor.

    Args:
        name_or_path: `"starter"` (shipped with the package), `"towers"` (from the package registry), a local folder, or
            a Hub id. A folder that holds a PEFT adapter stands for its base model with the adapter merged.
        max_text_length: stretch the text tower to so many tokens (see `stretch_text_positions`).
        revision: branch, tag or commit on the Hub; a folder has none.
        attention_slicing: when attention goes in slices, see `use_sliced_attention`.

    Raises:
        ClipDomainError: an unreachable or unknown Hub id, a folder without a (whole) model or processor, or a model
            that is no dual encoder; says what is missing and what to do.
    """
    if (adapter := find_adapter(name_or_path)) is not None:
        return _load_with_adapter(adapter, max_text_length, revision)
    name = str(name_or_path)
    if name == TOWERS:
        if revision is not None:
            raise ClipDomainError(f"--model_revision {revision}: '{TOWERS}' are installed packages, without revisions.")
        model, processor = load_towers(MAX_TEXT_LENGTH if max_text_length is None else max_text_length)
        use_sliced_attention(model, attention_slicing)
        return model, processor
    folder = find_folder(name_or_path)
    if folder is not None:
        if revision is not None:
            raise ClipDomainError(
                f"{name} is a folder on this machine, which has no revisions: leave out --model_revision {revision}, or "
                "give the model's Hub id."
            )
        source, options, silence = str(folder), {}, None
    else:
        silence = _why_hub_is_silent()
        source, options = name, {"revision": revision, "local_files_only": silence is not None}
    with _explained(name, folder, "configuration (config.json)", silence):
        config = AutoConfig.from_pretrained(source, **options)
    check_dual_encoder(config, name)
    with _explained(name, folder, "weights", silence), _quiet():
        # Tensors that do not fit are refused below in one sentence; without the flag it would be a table.
        model, report = AutoModel.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    _check_whole(name, report)
    files = "processor_config.json or preprocessor_config.json, tokenizer files"
    with _explained(name, folder, f"processor ({files})", silence):
        processor = AutoProcessor.from_pretrained(source, **options)
    _check_processor(name, processor, config)
    if max_text_length is not None:
        stretch_text_positions(model, processor.tokenizer, max_text_length)
    use_sliced_attention(model, attention_slicing)
    # Some tokenizers name no limit, or a larger one than their tower has positions for.
    processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, text_capacity(model))
    return model, processor


def _load_with_adapter(folder: Path, max_text_length: int | None, revision: str | None) -> tuple[PreTrainedModel, Any]:
    base, trained_on = base_of(folder)
    try:
        model, processor = load_model(base, revision=revision or trained_on)
    except ClipDomainError as error:
        raise ClipDomainError(
            f"{folder} holds an adapter of {base}, which could not be loaded: {error} If the base model lies elsewhere, "
            "name it there as base_model_name_or_path in adapter_config.json."
        ) from error
    if (folder / "tokenizer_config.json").is_file():
        with _explained(str(folder), folder, "processor", None):
            processor = AutoProcessor.from_pretrained(folder)
        length = processor.tokenizer.model_max_length
        if text_capacity(model) < length < VERY_LARGE_INTEGER:  # trained with --max_text_length
            if base == TOWERS:
                model, _ = load_towers(length)
            else:
                stretch_text_positions(model, processor.tokenizer, length)
        if (size := processor_size(processor)) != image_size_of(model):  # trained with --resolutions
            model, processor = at_image_size(model, processor, size)
    with _explained(str(folder), folder, "adapter", None), _quiet():
        model = merge_adapter(model, folder)
    if max_text_length is not None:
        stretch_text_positions(model, processor.tokenizer, max_text_length)
    return model.eval(), processor


def find_hub_file(name: str, file: str) -> Path | None:
    """A file beside a model on the Hub, or in its cache when the Hub is silent; `None` where there is none."""
    found = cached_file(
        name,
        file,
        local_files_only=_why_hub_is_silent() is not None,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None


def _check_whole(name: str, report: dict[str, Any]) -> None:
    """Weights that a file lacks would silently be random."""
    if report["mismatched_keys"]:
        key, found, expected = sorted(report["mismatched_keys"])[0]
        raise ClipDomainError(
            f"{name}: config.json and the weights belong to different models: {key} has shape {tuple(found)} in the "
            f"file and {tuple(expected)} by config.json."
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ClipDomainError(
            f"{name}: the weights are incomplete: {len(missing)} tensors are missing, such as {missing[0]}. Was it "
            "saved from one tower, or from another kind of model?"
        )


def _check_processor(name: str, processor: Any, config: Any) -> None:
    save = (
        "Copy them there, or save the base model's processor beside the weights: `processor.save_pretrained(folder)`."
    )
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        raise ClipDomainError(
            f"{name} has no processor for both images and texts: preprocessor_config.json and tokenizer files are "
            f"needed. {save}"
        )
    # Without its files a tokenizer is made all the same, of special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_tokens) + 1:
        raise ClipDomainError(
            f"{name} has no vocabulary: tokenizer.json (or vocab.json and merges.txt) is missing. {save}"
        )
    vocabulary = config.text_config.vocab_size
    if len(tokenizer) > vocabulary:
        raise ClipDomainError(
            f"{name}: the tokenizer has {len(tokenizer):,} tokens and the text tower {vocabulary:,}: they belong to "
            f"different models. {save}"
        )


@contextmanager
def _explained(name: str, folder: Path | None, part: str, silence: str | None) -> Iterator[None]:
    """One sentence for whatever escapes while `part` is loaded."""
    try:
        yield
    except SafetensorError as error:
        raise ClipDomainError(f"{name}: the weights are damaged or cut short ({error}): copy them again.") from error
    except Exception as error:  # the parsers of configurations, pickles and tokenizers raise of every kind
        reason = _first_line(error)
        if folder is not None:
            raise ClipDomainError(f"{name}: the {part} could not be loaded: {reason}") from error
        raise ClipDomainError(_hub_reason(name, error, silence) or f"{name}: {part}: {reason}") from error


def _why_hub_is_silent() -> str | None:
    """Why the Hub cannot be asked now, or `None` when it answers.

    The library repeats every request of every file for half a minute before it falls back on its cache; one question
    beforehand saves that. Asked twice, since a single connection may be lost.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    for attempt in (1, 2):
        try:
            get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except Exception as error:  # the HTTP library's own, which is no dependency of this package
            reason = _first_line(error)
            time.sleep(2 - attempt)
        else:
            return None
    return reason


def _hub_reason(name: str, error: Exception, silence: str | None) -> str | None:
    local = (
        f"To use a local folder: `hf download {name} --local-dir FOLDER` where there is a network, then "
        "--model_name_or_path FOLDER."
    )
    causes = tuple(_causes(error))
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"{name} on the Hub is gated: accept its terms there and log in with `hf auth login`."
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return f"{name} on the Hub has no such revision: check --model_revision."
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return (
            f"{name} is neither a local folder nor a model on the Hub that you may read (a private one needs "
            f"`hf auth login`).{near_miss(name)}"
        )
    if silence is not None or any(_is_connection_error(cause) for cause in causes):
        return (
            f"{name} could not be reached on the Hub ({constants.ENDPOINT}: {silence or _first_line(causes[-1])}) and "
            f"is not, or not wholly, in the local cache.{near_miss(name)} {local}"
        )
    return None


def _is_connection_error(error: BaseException) -> bool:
    kinds = (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError, TimeoutError)
    return isinstance(error, kinds) or type(error).__module__.startswith(("httpx", "httpcore"))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's table of tensors that were left over, such as the position ids of old checkpoints."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
