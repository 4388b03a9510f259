"""What an alarm is about, in words: which part drifted, towards which domain, what to collect, how to adapt again."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

from hf_clip_domain.ops.drift.reference import Reference
from hf_clip_domain.ops.drift.windows import Window
from hf_clip_domain.serving.quality import QUALITIES
from hf_clip_domain.serving.sketches import restore

REFERENCE = "the reference"
_NEIGHBOURS = 5
_SHIFTED = 60
_CLUSTERS = 3
# A token of fewer texts may be a name.
_FEWEST_TEXTS = 5
# Domains are named from texts only when so many of them are nearer to one than to the reference.
_CLEAR = 0.5
_COLLECT = 500
# Less and more of it.
_WORDS = {
    "brightness": ("darker", "brighter"),
    "contrast": ("of less contrast", "of more contrast"),
    "sharpness": ("less sharp", "sharper"),
    "noise": ("smoother", "noisier"),
}


@dataclass(frozen=True)
class Cluster:
    """Rows of the traffic that the reference has least of: how many alike, and which reference rows come nearest."""

    kind: str
    rows: int
    similarity: float
    nearest: tuple[str, ...]


@dataclass(frozen=True)
class Suggestion:
    """Sentences, and the command that adapts the model again."""

    domain: str | None
    text: str
    command: str | None
    clusters: tuple[Cluster, ...]
    new_terms: tuple[str, ...]
    nearest_domains: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def suggest(
    reference: Reference, window: Window, drifted: set[str], decode: Callable[[int], list[str]] | None = None
) -> Suggestion:
    """For what drifted in a window.

    Args:
        drifted: names of tests.
        decode: from a bucket to the tokens that fall into it, where the model's tokenizer is at hand.
    """
    nearest = nearest_domains(reference, window)
    clusters = [*shifted(reference, window, "image"), *shifted(reference, window, "text")]
    terms = new_terms(reference, window, decode) if decode else ()
    own, target = reference.meta["domain"], None
    pictures, texts = bool(drifted & {"image", "quality"}), bool(drifted & {"text", "terms"})
    if texts and nearest:
        share, name = max((share, name) for name, share in nearest.items() if name != REFERENCE)
        target = name if share >= _CLEAR else None
    domain = target or own
    if not drifted:
        return Suggestion(None, "No drift: nothing to do.", None, tuple(clusters), (), nearest)
    if not pictures and not texts:
        said = (
            "Pictures and texts look as they did, and no longer belong together as they did. Look first at how clients "
            "pair them (shifted rows, a wrong join, another language or prompt); only if the pairs are right, measure with "
            f"labelled pairs (--feedback) and adapt again with {_COLLECT} of them."
        )
    elif pictures and not texts:
        said = (
            "The pictures changed and the texts did not: another device, another compression or preparation, blur or "
            f"noise. Compare recent pictures with older ones and mend what can be mended; else collect {_COLLECT} of the "
            f"new pictures with their texts, and adapt again as {domain}."
        )
    else:
        what = "Pictures and texts" if pictures else "The texts"
        towards = f" {nearest[target]:.0%} of the texts are nearest to {target}." if target and target != own else ""
        said = f"{what} changed.{towards} Collect {_COLLECT} pairs of the new kind, and as many of the old, and adapt again."
    if changes := quality_changes(reference, window) if "quality" in drifted else ():
        said += f" The pictures are {', '.join(changes)} than in the reference."
    if terms:
        said += f" Terms that training never saw: {', '.join(terms)}."
    words = ["hf-clip-domain", "train", "--domain", domain, "--dataset", "NEW_PAIRS"]
    words += ["--model_name_or_path", reference.meta["model"] or "MODEL", "--output_dir", f"outputs/{domain}-again"]
    return Suggestion(domain, said, shlex.join(words), tuple(clusters), terms, nearest)


def nearest_domains(reference: Reference, window: Window) -> dict[str, float]:
    """The share of the window's texts whose nearest neighbours are texts of the reference, or typical of a packaged
    domain; empty where there are no texts. Each side is thinned to the same number of texts."""
    texts = window.text_vectors
    if not len(texts) or "domain_sketches" not in reference.arrays:
        return {}
    index, draw = reference.arrays["domain_index"], np.random.default_rng(0)
    names = [REFERENCE, *reference.meta["domains"]]
    sources = [restore(reference.arrays["text_sketches"])]
    sources += [restore(reference.arrays["domain_sketches"][index == number]) for number in range(len(names) - 1)]
    least = min(map(len, sources))
    rows = np.concatenate([source[draw.permutation(len(source))[:least]] for source in sources])
    owner = np.repeat(np.arange(len(names)), least)
    close = owner[np.argpartition(-(texts @ rows.T), _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]]
    votes = np.stack([(close == number).sum(axis=1) for number in range(len(names))], axis=1).argmax(axis=1)
    return {name: float((votes == number).mean()) for number, name in enumerate(names)}


def quality_changes(reference: Reference, window: Window) -> tuple[str, ...]:
    """In which ways the pictures' quality differs: medians more than half an interquartile range apart."""
    own, seen = reference.arrays["image_qualities"], window.qualities
    low, middle, high = np.percentile(own, (25, 50, 75), axis=0)
    apart = (np.median(seen, axis=0) - middle) / np.maximum(high - low, 0.1)
    order = [place for place in np.argsort(-np.abs(apart)) if abs(apart[place]) > 0.5]
    return tuple(_WORDS[QUALITIES[place]][int(apart[place] > 0)] for place in order)


def shifted(reference: Reference, window: Window, kind: str) -> list[Cluster]:
    """The rows that resemble the window much more than the reference, in up to three clusters."""
    rows = window.images if kind == "image" else window.text_vectors
    if kind not in reference.tests or len(rows) < _SHIFTED:
        return []
    witness = reference.tests[kind].witness(rows)
    rows = rows[np.argsort(-witness)[:_SHIFTED]]
    known = restore(reference.arrays[f"{kind}_sketches"])
    labels = reference.meta.get("labels") or []
    number = KMeans(_CLUSTERS, n_init=3, random_state=0).fit_predict(rows)
    found = []
    for cluster, size in Counter(number.tolist()).most_common():
        alike = rows[number == cluster] @ known.T  # (size, n)
        near = np.argsort(-alike.mean(axis=0))[:_NEIGHBOURS]
        names = dict.fromkeys(labels[row] for row in near if row < len(labels) and labels[row])
        found.append(Cluster(kind, size, float(alike.max(axis=1).mean()), tuple(names)))
    return found


def new_terms(reference: Reference, window: Window, decode: Callable[[int], list[str]]) -> tuple[str, ...]:
    """The commonest tokens of the window that no training caption has, from at least five texts each."""
    if "vocabulary" not in reference.arrays:
        return ()
    counts = np.where(reference.arrays["vocabulary"].astype(bool), 0, window.token_counts)
    common = [int(bucket) for bucket in np.argsort(-counts, kind="stable")[:10] if counts[bucket] >= _FEWEST_TEXTS]
    return tuple("/".join(names) for bucket in common if (names := decode(bucket)))
