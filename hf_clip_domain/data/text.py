"""Captions: cleaned by a domain's rules, split into sentences, measured against the text tower's limit."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import islice
from typing import Any

from hf_clip_domain.domains import Domain

_SPACES = re.compile(r"\s+")
_SPACE_BEFORE = re.compile(r"\s+([,.;:!?](?=[\s)\]”\"]|$)|[)\]])")
_SPACE_AFTER_OPENING = re.compile(r"([(\[])\s+")
_EMPTY_BRACKETS = re.compile(r"\(\s*[,;:.]*\s*\)|\[\s*\]")
_DOUBLED = re.compile(r"([,;:.])(?:\s+[,;:.])+(?=\s|$)|([,;])\2+")
_LEADING = re.compile(r"^[\s,;:.)\]–—-]+(?=\S)")
_TRAILING = re.compile(r"[\s,;:–—-]+$")

# A full stop after one of these does not end a sentence; nor does one after a single capital (an initial).
_ABBREVIATIONS = frozenset(
    "dr mr mrs ms prof st jr sr vs fig figs eq ref no vol ed approx ca cf c e.g i.e etc al u.s u.k a.m p.m sp spp "
    "mt gen gov sen rep capt col lt sgt rev hon dept univ inc ltd co corp".split()
)
_SENTENCE_END = re.compile(r"[.!?]+[\"”’')\]]*\s+(?=[\"“‘'(\[]?[A-Z0-9(])")
_SHORTEST_SENTENCE = 3  # words: less is a title or a panel letter, and goes with what follows


def clean_caption(text: str, domain: Domain) -> str:
    """The caption as the model reads it: the domain's rewrites, then its glossary, then tidied punctuation.

    Cleaning twice changes nothing more. A caption of which nothing would be left is returned with only its spaces
    tidied, so that none is ever empty.
    """
    plain = _SPACES.sub(" ", unicodedata.normalize("NFC", text)).strip()
    cleaned = plain
    for _ in range(4):  # taking one remnant away may bring the next one to the end
        before = cleaned
        for pattern, replace in domain.text.compiled:
            cleaned = pattern.sub(replace, cleaned)
        cleaned = _tidy(_spell_out(cleaned, domain))
        if cleaned == before:
            break
    return cleaned if any(character.isalnum() for character in cleaned) else plain


def split_sentences(text: str) -> list[str]:
    """The sentences of a caption, in order; at least one, and none of fewer than three words unless it is alone."""
    parts, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        word = text[start : end.start()].rsplit(maxsplit=1)[-1:] or [""]
        last = word[0].lstrip("(\"“'[")
        is_initial = len(last) == 1 and last.isupper()
        if text[end.start()] == "." and (is_initial or last.lower() in _ABBREVIATIONS):
            continue
        parts.append(text[start : end.end()].strip())
        start = end.end()
    parts.append(text[start:].strip())

    sentences: list[str] = []
    short = ""
    for part in filter(None, parts):
        part = f"{short} {part}".strip()
        if len(part.split()) < _SHORTEST_SENTENCE:
            short = part
        else:
            sentences.append(part)
            short = ""
    if short and sentences:
        sentences[-1] += f" {short}"
    elif short or not sentences:
        sentences.append(short or text)
    return sentences


def count_cut_captions(texts: Iterable[str], tokenizer: Any, max_text_length: int) -> tuple[int, int]:
    """How many captions have more than `max_text_length` tokens (start and end included), and how many there are."""
    cut = total = 0
    texts = iter(texts)
    while chunk := list(islice(texts, 1024)):
        # verbose=False: the tokenizer would warn of every sequence longer than the model's.
        lengths = [len(ids) for ids in tokenizer(chunk, truncation=False, padding=False, verbose=False)["input_ids"]]
        cut += sum(length > max_text_length for length in lengths)
        total += len(lengths)
    return cut, total


def _spell_out(text: str, domain: Domain) -> str:
    """`CT` becomes `computed tomography (CT)` at its first use, unless the words stand there already."""
    if domain.text.abbreviations is None:
        return text
    lowered, seen = text.lower(), set()

    def expand(match: re.Match[str]) -> str:
        short = match.group()
        words = domain.text.glossary[short]
        in_brackets = text[: match.start()].endswith("(") and text[match.end() :].startswith(")")
        # In brackets it stands behind the author's own words for it.
        known = short in seen or in_brackets or words.lower() in lowered
        seen.add(short)
        return short if known else f"{words} ({short})"

    return domain.text.abbreviations.sub(expand, text)


def _tidy(text: str) -> str:
    """Mend the punctuation that a removal leaves behind."""
    text = _EMPTY_BRACKETS.sub("", text)
    text = _SPACES.sub(" ", text)
    text = _DOUBLED.sub(r"\1\2", text)
    text = _SPACE_BEFORE.sub(r"\1", text)
    text = _SPACE_AFTER_OPENING.sub(r"\1", text)
    while text.endswith((")", "]")) and text.count(")") + text.count("]") > text.count("(") + text.count("["):
        text = text[:-1].rstrip()
    if not text.startswith("("):
        text = _LEADING.sub("", text)
    return _TRAILING.sub("", text).strip()
