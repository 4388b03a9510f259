"""Which column holds the picture, the caption, the label: by convention, or as the user says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_clip_domain.errors import ClipDomainError

_PICTURE_FILES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "gif", "dcm")
CONVENTIONS = {
    "image": (
        "image",
        "image_path",
        "file_name",
        "filepath",
        "file_path",
        "path",
        "img",
        "filename",
        "image_file",
        "file",
    )
    + _PICTURE_FILES,
    "text": ("text", "caption", "captions", "texts", "sentence", "sentences", "description", "report", "txt", "title"),
    "label": ("label", "class", "category", "cls"),
    "group": ("group", "patient_id", "group_id", "document_id", "study_id"),
    "split": ("split",),
}
_SPLITS = {
    "train": ("train", "training", "restval"),  # restval: the rest of COCO's validation, in Karpathy's splits
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Columns:
    """Names of the columns in the source; `None` where there is none."""

    image: str | None
    text: str | None
    label: str | None
    group: str | None
    split: str | None


def find_columns(
    there: Iterable[str], source: str, *, required: Sequence[str] = ("image", "text"), **given: str | None
) -> Columns:
    """Match a source's columns to their roles.

    Args:
        there: the columns of the source.
        source: for messages.
        required: roles without which the source is of no use.
        given: `image`, `text`, `label`, `group` as named by the user.

    Raises:
        ClipDomainError: a given column is not there, or no picture or caption column is recognised.
    """
    names = list(there)
    lowered = {name.lower(): name for name in reversed(names)}
    found: dict[str, str | None] = {}
    for role, conventions in CONVENTIONS.items():
        name = given.get(role)
        if name is not None and name not in names:
            raise ClipDomainError(f"{source}: --{role}_column {name}: no such column; there are {', '.join(names)}.")
        found[role] = name or next((lowered[word] for word in conventions if word in lowered), None)
    if found["text"] is None and "json" in names:  # WebDataset: the caption inside each sample's JSON
        found["text"] = "json"
    for role in required:
        if found[role] is None:
            raise ClipDomainError(
                f"{source}: no {role} column among {', '.join(names) or 'no columns'}; name it with --{role}_column."
            )
    return Columns(**found)


def read_captions(value: Any) -> list[str]:
    """The captions of a cell: a string, a list, a list written as JSON, or a WebDataset sample's JSON.

    Raises:
        ValueError: not text, or no caption that is not blank; the message is the reason.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, dict):
        value = next((value[name] for name in CONVENTIONS["text"] if name in value), None)
    if isinstance(value, str) and value.lstrip().startswith('["'):
        try:
            value = json.loads(value)
        except ValueError:
            pass  # a caption that happens to begin like a list
    texts = [value] if isinstance(value, str) else value
    if texts is None:
        raise ValueError("no caption")
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"caption is a {type(value).__name__}, expected text or a list of texts")
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise ValueError("empty caption")
    return texts


def read_split(value: Any) -> str | None:
    """The usual name of a split, `None` for an empty cell.

    Raises:
        ValueError: a name nobody knows.
    """
    if value is None or str(value).strip() == "":
        return None
    word = str(value).strip().lower()
    for name, spellings in _SPLITS.items():
        if word in spellings:
            return name
    raise ValueError(f"split {value!r} is none of train, validation, test")


def split_of_folder(name: str) -> str | None:
    """The split that a folder is, or `None`: `test` is one, and `test_tube` may be a class."""
    return next((split for split, spellings in _SPLITS.items() if name.lower() in spellings), None)


def split_in_name(name: str) -> str | None:
    """The split that a shard or a table is named for (`train`, `test-00000-of-00001`), or `None`."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, spellings in _SPLITS.items() if any(word in spellings for word in words)), None)
