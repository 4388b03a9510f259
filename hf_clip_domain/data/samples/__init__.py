"""Embedded samples: procedural pictures with captions that say what is drawn. All of them are synthetic."""

from __future__ import annotations

import importlib
from hashlib import sha256

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from tqdm.auto import tqdm

from hf_clip_domain.data.samples.canvas import Drawing
from hf_clip_domain.errors import ClipDomainError

_DOMAINS = ("general", "industrial", "medical", "scientific")
_SPLITS = ("train", "validation", "test")
FEATURES = Features(
    {"image": Image(decode=False), "text": List(Value("string")), "label": Value("string"), "group": Value("string")}
)


def available_samples() -> list[str]:
    """Domains that have embedded samples."""
    return list(_DOMAINS)


def load_samples(
    domain: str, *, train: int = 1000, validation: int = 150, test: int = 250, seed: int = 0
) -> DatasetDict:
    """Synthetic pairs of a domain, drawn anew and always the same for a seed.

    No caption and no picture stands twice, within a split or across splits. A larger training split begins with
    the rows of the smaller one.

    Returns:
        Splits of rows `image` ({"bytes", "path"}), `text` (one or two captions), `label` (kind of drawing), `group`.

    Raises:
        ClipDomainError: a domain without samples.
    """
    if domain not in _DOMAINS:
        raise ClipDomainError(f"no embedded samples for {domain!r}; there are some for {', '.join(_DOMAINS)}.")
    sizes = dict(zip(_SPLITS, (train, validation, test), strict=True))
    splits, seen = {}, set()
    with tqdm(total=sum(sizes.values()), desc=f"Drawing {domain} samples", delay=2, leave=False) as bar:
        for split, size in sizes.items():
            rows = []
            for number in range(size):
                rows.append(_distinct_row(domain, split, number, seed, seen))
                bar.update()
            if rows:
                columns = {key: [row[key] for row in rows] for key in FEATURES}
                splits[split] = Dataset.from_dict(columns, features=FEATURES)
    return DatasetDict(splits)


def draw_sample(domain: str, split: str, number: int, seed: int = 0, attempt: int = 0) -> Drawing:
    """One drawing with the facts behind its captions."""
    module = importlib.import_module(f"hf_clip_domain.data.samples.{domain}")
    rng = np.random.default_rng([seed, _DOMAINS.index(domain), _SPLITS.index(split), number, attempt])
    return module.KINDS[int(rng.integers(len(module.KINDS)))](rng)


def _distinct_row(domain: str, split: str, number: int, seed: int, seen: set) -> dict:
    """A row whose captions and picture no earlier row has; a repetition is drawn again."""
    for attempt in range(1000):
        drawing = draw_sample(domain, split, number, seed, attempt)
        picture = drawing.encode()
        if seen.isdisjoint((sha256(picture).digest(), *drawing.captions)):
            break
    else:
        raise ClipDomainError(f"the {domain} samples do not vary enough for so many rows: ask for fewer.")
    seen.update((sha256(picture).digest(), *drawing.captions))
    return {
        "image": {"bytes": picture, "path": None},
        "text": drawing.captions,
        "label": drawing.label,
        "group": f"{domain}-{split}-{number}",
    }
