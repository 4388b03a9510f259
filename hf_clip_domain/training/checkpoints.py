"""Whole checkpoints: a manifest of checksums, written last, tells one from a torso that a kill left behind."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import logging

from hf_clip_domain.errors import ClipDomainError

logger = logging.get_logger(__name__)

MANIFEST = "checksums.json"


def unseal(folder: Path) -> None:
    """Mark a checkpoint that is about to be written over as not whole."""
    (folder / MANIFEST).unlink(missing_ok=True)


def seal(folder: Path) -> None:
    """Write the manifest (size and SHA-256 of every file) atomically; from then on the checkpoint is whole."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    temporary = folder / f".{MANIFEST}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(files, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, folder / MANIFEST)


def defect(folder: Path) -> str | None:
    """Why this checkpoint cannot be trusted, or `None` when it is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{MANIFEST} is missing: saving was cut short"
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if _sha256(path) != expected["sha256"]:
            return f"{name} does not match its checksum"
    return None


def last_whole_checkpoint(output_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run; every torso passed over is named in a warning."""
    for folder in _newest_first(output_dir):
        reason = defect(folder)
        if reason is None:
            return folder
        logger.warning(f"{folder} is not a whole checkpoint ({reason}); it is not used.")
    return None


def choose_checkpoint(request: str | bool | None, output_dir: Path) -> Path | None:
    """What `--resume_from_checkpoint` means: `True` is the last whole one of the run, a path is that one if whole.

    A path to a torso falls back to the last whole checkpoint beside it, and says so.

    Raises:
        ClipDomainError: the path does not exist, or neither it nor a neighbour is whole.
    """
    if not request:
        return None
    if request is True:
        chosen = last_whole_checkpoint(output_dir)
        if chosen is None:
            logger.warning(f"{output_dir} holds no whole checkpoint yet: training starts from the beginning.")
        return chosen
    folder = Path(request)
    if not folder.is_dir():
        there = ", ".join(path.name for path in _newest_first(folder.parent)) or "none"
        raise ClipDomainError(
            f"--resume_from_checkpoint {folder}: no such folder. Checkpoints in {folder.parent}: {there}."
        )
    reason = defect(folder)
    if reason is None:
        return folder
    chosen = last_whole_checkpoint(folder.parent)
    if chosen is None:
        raise ClipDomainError(
            f"--resume_from_checkpoint {folder}: not a whole checkpoint ({reason}), and {folder.parent} has no other. "
            "Train without --resume_from_checkpoint."
        )
    logger.warning(f"{folder} is not a whole checkpoint ({reason}); {chosen} is used instead.")
    return chosen


@contextlib.contextmanager
def explaining_another_run(folder: str | Path):
    """Turn an optimizer state of other parameters into one sentence.

    Raises:
        ClipDomainError: the checkpoint's optimizer state does not fit the parameters that train now.
    """
    try:
        yield
    except ValueError as error:
        if "loaded state dict" not in str(error):
            raise
        raise ClipDomainError(
            f"{folder} was written by a run in which other parameters train, or train otherwise: resume with the model, "
            f"--freeze, --adapter, --loss and --muon_ratio of that run, or begin a new run from its weights, by "
            f"--model_name_or_path {folder}."
        ) from error


@contextlib.contextmanager
def explaining_failures(folder: Path) -> Iterator[None]:
    """Turn a failure to write (a full disk, a quota) into one sentence that says what is still safe.

    Raises:
        ClipDomainError: nothing more could be written; the torso has been removed, earlier checkpoints are untouched.
    """
    try:
        yield
    except Exception as error:
        if not _is_out_of_space(error):
            raise
        if folder.name.startswith("checkpoint-"):
            shutil.rmtree(folder, ignore_errors=True)
        run_dir = folder.parent if folder.name.startswith("checkpoint-") else folder
        safe = last_whole_checkpoint(run_dir)
        kept = f"Training up to {safe} is safe" if safe else "No checkpoint had been written before"
        raise ClipDomainError(
            f"{folder} could not be written: {str(error).splitlines()[0]}. {kept}. Free some space, then run the same "
            "command again with --resume_from_checkpoint."
        ) from error


def _is_out_of_space(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    # safetensors and torch.save report the system's error in their own exception types.
    return any(
        sign in str(error).lower()
        for sign in ("no space left", "quota exceeded", "file too large", "file write failed", "unexpected pos")
    )


def _newest_first(output_dir: Path) -> list[Path]:
    """By time of writing, not by step: a run started afresh in the same folder has the smaller numbers."""
    if not output_dir.is_dir():
        return []
    found = []
    for path in output_dir.glob("checkpoint-*"):
        step = path.name.rpartition("-")[2]
        if path.is_dir() and step.isdigit():
            found.append((path.stat().st_mtime_ns, int(step), path))
    return [path for *_, path in sorted(found, reverse=True)]


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
