"""What rows have in common besides their caption: ids and terms by which a loss tells positives from negatives."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any

import numpy as np

from hf_clip_domain.domains import Domain
from hf_clip_domain.errors import ClipDomainError


def relation_values(row: dict[str, Any], text: str, domain: Domain, relations: tuple[str, ...]) -> dict[str, Any]:
    """The values of some relations of a row: "image" and "label" an int64 id, "terms" zeros and ones.

    Args:
        row: canonical, with `image` and `label`.
        text: the caption drawn, cleaned.
        domain: whose glossary names the terms.

    Raises:
        ClipDomainError: "terms" in a domain without a glossary, or an unknown relation.
    """
    found: dict[str, Any] = {}
    for name in relations:
        if name == "image":
            found[name] = image_id(row["image"])
        elif name == "label":
            # A row without a label is like no other.
            found[name] = image_id(row["image"]) if row.get("label") is None else word_id(str(row["label"]))
        elif name == "terms":
            found[name] = term_vector(text, domain)
        elif name != "caption":  # the collator tells captions apart itself
            raise ClipDomainError(f"unknown relation {name!r}: expected caption, image, label or terms.")
    return found


def word_id(text: str) -> int:
    """A signed 64-bit number, the same in every process and run for words equal up to case and spaces."""
    return _number(" ".join(text.casefold().split()).encode())


def image_id(image: dict[str, Any]) -> int:
    """A signed 64-bit number of a picture's file or bytes."""
    if image.get("bytes") is not None:
        return _number(image["bytes"])
    return _number(str(image.get("path")).encode())


def term_vector(text: str, domain: Domain) -> np.ndarray:
    """Which terms of the domain's glossary a caption holds, spelt out or abbreviated: `(f,)` int8."""
    patterns = _patterns(tuple(domain.text.glossary.items()))
    if not patterns:
        raise ClipDomainError(f"domain {domain.name!r} has no glossary, so rows cannot be related by their terms.")
    return np.array([pattern.search(text) is not None for pattern in patterns], dtype=np.int8)


@lru_cache(maxsize=8)
def _patterns(glossary: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], ...]:
    """One a term; abbreviations of the same words are one term."""
    forms: dict[str, list[str]] = {}
    for short, words in glossary:
        forms.setdefault(words.casefold(), []).append(short)
    return tuple(
        re.compile(rf"(?i:\b{re.escape(words)}\b)|(?<![\w&])(?:{'|'.join(map(re.escape, shorts))})(?![\w&])")
        for words, shorts in sorted(forms.items())
    )


def _number(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), signed=True)
