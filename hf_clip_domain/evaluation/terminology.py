"""Does the text tower know the words of the field? Triplets of terms, and sentences that differ in one thing.

A text tower that only notices topics passes for competent in retrieval: "no fracture" and "a fracture" share theirs.
Here a term must be more alike to what means the same than to a near miss, and a sentence more alike to its paraphrase
than to a contradiction that differs in a word or two (which shares more words with it than the paraphrase does).
Guessing scores 50%, and a tower that counts common words scores below that on the sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
import yaml

from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.bootstrap import REPLICATES, mean_replicates
from hf_clip_domain.evaluation.measurement import Measurement
from hf_clip_domain.evaluation.ranking import TIE_TOLERANCE

CHANCE = 0.5


@dataclass(frozen=True)
class Triple:
    """`text` should be more alike to `same` than to `other`."""

    text: str
    same: str
    other: str


@dataclass(frozen=True)
class Terminology:
    """The tests of a domain: triplets of terms, and minimal pairs of sentences by what is changed in them."""

    triplets: tuple[Triple, ...]
    minimal_pairs: dict[str, tuple[Triple, ...]]


def available_terminologies() -> list[str]:
    """Names of the tests that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def load_terminology(name_or_path: str) -> Terminology:
    """Read a packaged test by name, or a YAML file of the same form: `triplets: [a | b | c, ...]`, and
    `minimal_pairs: {kind: [a | b | c, ...]}`.

    Raises:
        ClipDomainError: no such file, or one that is not of this form.
    """
    file: Any = _folder() / f"{name_or_path}.yaml" if name_or_path in available_terminologies() else Path(name_or_path)
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClipDomainError(
            f"terminology {name_or_path!r}: expected one of {', '.join(available_terminologies())}, or the path of a "
            "YAML file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ClipDomainError(f"terminology {file} is not valid YAML: {' '.join(str(error).split())}") from error
    tree = tree if isinstance(tree, dict) else {}
    pairs = tree.get("minimal_pairs", {})
    if set(tree) - {"triplets", "minimal_pairs"} or not tree or not isinstance(pairs, dict):
        raise ClipDomainError(f"terminology {file}: expected `triplets: [...]` and `minimal_pairs: {{kind: [...]}}`.")
    return Terminology(
        _triples(tree.get("triplets") or [], file, "triplets"),
        {str(kind): _triples(lines, file, f"minimal_pairs.{kind}") for kind, lines in pairs.items()},
    )


def measure_terminology(embedder: ClipEmbedder, terminology: Terminology, replicates: int = REPLICATES) -> Measurement:
    """Shares answered rightly, by text-to-text cosine: `triplets`, `minimal_pairs` (all), `minimal_pairs/<kind>`.

    An answer within float noise of a tie is wrong. `details` lists the wrongly answered.
    """
    parts = {"triplets": terminology.triplets} if terminology.triplets else {}
    parts |= {f"minimal_pairs/{kind}": triples for kind, triples in terminology.minimal_pairs.items() if triples}
    triples = [triple for part in parts.values() for triple in part]
    texts = list(dict.fromkeys(text for triple in triples for text in (triple.text, triple.same, triple.other)))
    place = {text: position for position, text in enumerate(texts)}
    embeds = F.normalize(embedder.embed_texts(texts, progress=False), dim=-1)  # (t, d)

    text, same, other = (
        embeds[[place[getattr(triple, side)] for triple in triples]] for side in ("text", "same", "other")
    )
    same, other = (text * same).sum(dim=-1), (text * other).sum(dim=-1)
    right = (same > other + TIE_TOLERANCE).double().numpy()
    found, start = Measurement({"chance": CHANCE}), 0
    spans = {}
    for name, part in parts.items():
        spans[name] = slice(start, start + len(part))
        start += len(part)
    if terminology.minimal_pairs:
        spans["minimal_pairs"] = slice(len(terminology.triplets), start)
    for name, span in spans.items():
        found.metrics[name] = float(right[span].mean())
        if replicates:  # every question was written by itself: each is a cluster
            found.replicates.update(mean_replicates({name: right[span]}, np.arange(span.stop - span.start), replicates))
    found.details["wrong"] = [
        [triple.text, triple.same, triple.other] for triple, good in zip(triples, right, strict=True) if not good
    ]
    return found.prefixed("terminology")


def _triples(lines: Any, file: Any, where: str) -> tuple[Triple, ...]:
    if not isinstance(lines, list):
        raise ClipDomainError(f"terminology {file}: {where}: expected a list of lines `text | same | other`.")
    triples = []
    for number, line in enumerate(lines):
        parts = [part.strip() for part in str(line).split("|")]
        if len(parts) != 3 or not all(parts) or len(set(parts)) < 3:
            raise ClipDomainError(
                f"terminology {file}: {where}[{number}]: expected three different texts, `text | same | other`; "
                f"found {str(line)!r}."
            )
        triples.append(Triple(*parts))
    return tuple(triples)


def _folder() -> Any:
    return resources.files("hf_clip_domain.domains") / "terminology"
