"""What traffic is compared with: held-out pairs as the model embeds them, and what every test gives among themselves.

Held-out and not training rows: a tuned model has pulled the pairs that it learned closer together than it will ever pull
new ones, and every window of requests would look like drift (docs/drift.md has the measurement).
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.ops.drift.calibration import RESAMPLES, null_distribution
from hf_clip_domain.ops.drift.two_sample import (
    KernelDistance,
    MeanDistance,
    QualityDistance,
    ScoreDistance,
    UnseenTerms,
)
from hf_clip_domain.ops.drift.windows import Window
from hf_clip_domain.serving.centre import REFERENCE_FILE as REFERENCE_FILE
from hf_clip_domain.serving.sketches import BUCKETS, restore

FORMAT = 1
# A test of fewer rows on either side is left out: it would tell nothing.
FEWEST_ROWS = 50
# What a reference may hold beyond its null distribution; each is optional.
_ARRAYS = {
    "image_sketches",
    "text_sketches",
    "image_others",
    "text_others",
    "image_qualities",
    "image_mean",
    "text_mean",
    "pair_scores",
    "pair_margins",
    "top_scores",
    "entropies",
    "clusters",
    "unseen",
    "tokens",
    "vocabulary",
    "token_counts",
    "image_embeds",
    "text_embeds",
    "domain_sketches",
    "domain_index",
}


@dataclass(frozen=True)
class Reference:
    """Arrays by name, each optional, and what they come from.

    Attributes:
        meta: `model`, `revision`, `resolution`, `domain`, `dataset`, `origin` ("held-out pairs" or "requests"),
            `domains` (names for `domain_index`), `labels` (of each row).
        arrays: `image_sketches (n, 64)` and `text_sketches (m, 64)` int8; `image_others`, `text_others (k, 64)` int8 by
            which these are whitened; `image_qualities (n, 4)`; `image_mean`, `text_mean (d,)` by which `pair_margins` are
            centred; `pair_scores`, `top_scores`, `entropies`; `clusters (n,)` of the held-out pairs, which have a row each
            in the same order; `unseen`, `tokens (m,)` of each text;
            `vocabulary (BUCKETS,)` bool of the training captions; `token_counts (BUCKETS,)`; `image_embeds`,
            `text_embeds (n, d)` float16 for measured degradation; `domain_sketches`, `domain_index` of texts of the
            packaged domains.
        null: `(resamples, tests)`, the columns as in `tests`; made when not given.
    """

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    given_null: np.ndarray | None = field(default=None, repr=False)
    resamples: int = RESAMPLES

    @cached_property
    def tests(self) -> dict[str, Any]:
        """The tests that this reference allows, by name."""
        have = {name: rows for name, rows in self.arrays.items() if len(rows) >= FEWEST_ROWS}
        found: dict[str, Any] = {}
        for kind in ("image", "text"):
            if f"{kind}_sketches" in have and f"{kind}_others" in have:
                found[kind] = KernelDistance(*(restore(have[f"{kind}_{part}"]) for part in ("sketches", "others")))
        if "image_qualities" in have:
            found["quality"] = QualityDistance(have["image_qualities"])
        if "pair_scores" in have:
            found["alignment"] = ScoreDistance(have["pair_scores"])
        if "pair_margins" in have:
            found["pairing"] = MeanDistance(have["pair_margins"])
        if "unseen" in have and have["tokens"].sum() > 0:
            found["terms"] = UnseenTerms(have["unseen"], have["tokens"])
        for test, series in (("top_score", "top_scores"), ("entropy", "entropies")):
            if series in have:
                found[test] = ScoreDistance(have[series])
        return found

    @cached_property
    def null(self) -> np.ndarray:
        """`(resamples, tests)`."""
        if self.given_null is not None:
            return self.given_null
        aligned = self.arrays.get("clusters")
        clusters = {}
        for name, test in self.tests.items():
            rows = len(test.tokens if name == "terms" else test.reference)
            clusters[name] = aligned if aligned is not None and len(aligned) == rows else np.arange(rows)
        return null_distribution(self.tests, clusters, self.resamples)

    def save(self, file: str | Path) -> None:
        """Write it whole or not at all.

        Raises:
            ClipDomainError: nothing to compare with, or a file that cannot be written.
        """
        if not self.tests:
            raise ClipDomainError(
                f"a drift reference needs at least {FEWEST_ROWS} held-out rows; there are "
                f"{max((len(rows) for rows in self.arrays.values()), default=0)}."
            )
        file = Path(file)
        part = file.with_name(f".{file.name}.part")
        meta = json.dumps({**self.meta, "format": FORMAT, "tests": list(self.tests)})
        try:
            with open(part, "wb") as stream:
                np.savez_compressed(stream, meta=np.array(meta), null=self.null, **self.arrays)
            os.replace(part, file)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ClipDomainError(f"{file} cannot be written: {error.strerror or error}.") from error

    @classmethod
    def load(cls, file: str | Path) -> Reference:
        """Read what `save` wrote.

        Raises:
            ClipDomainError: no such file, a damaged one, or one of another format.
        """
        try:
            with np.load(file, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files if name in _ARRAYS}
                meta, null = json.loads(str(found["meta"])), found["null"]
            if meta["format"] != FORMAT:
                raise ClipDomainError(f"{file} is of format {meta['format']}; make it again with --make_reference.")
            reference = cls(meta, arrays, null)
            if list(reference.tests) != meta["tests"] or null.shape[1:] != (len(meta["tests"]),):
                raise ValueError("its tests do not fit its arrays")
        except FileNotFoundError as error:
            raise ClipDomainError(
                f"{file}: there is no drift reference. Make one from pairs that the model did not train on: "
                "hf-clip-domain monitor MODEL --make_reference --dataset DATA"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ClipDomainError(f"{file} is damaged ({error}): make it again with --make_reference.") from error
        return reference

    def observe(self, window: Window) -> dict[str, tuple[float, int]]:
        """Each test's scaled statistic and the rows it saw, of those that have enough."""
        found: dict[str, tuple[float, int]] = {}
        series = {
            "image": window.images,
            "quality": window.qualities,
            "text": window.text_vectors,
            "alignment": window.pair_scores,
            "pairing": window.pair_margins,
            "top_score": window.series["top_scores"],
            "entropy": window.series["entropies"],
        }
        for name, test in self.tests.items():
            if name == "terms":
                counts = window.token_counts
                if window.texts >= FEWEST_ROWS and counts.sum():
                    found[name] = test.against(self.unseen_share(counts), window.texts), window.texts
            elif len(series[name]) >= FEWEST_ROWS:
                found[name] = test.against(series[name]), len(series[name])
        return found

    def unseen_share(self, counts: np.ndarray) -> float:
        """The share of tokens `(BUCKETS,)` that training never saw."""
        return float(counts[~self.arrays["vocabulary"].astype(bool)].sum() / max(1, counts.sum()))


def from_windows(windows: Window, meta: dict[str, Any]) -> Reference:
    """A reference of requests from a time when all was well, pooled; holds top scores and entropies too, which depend on
    the labels and galleries in use and which training therefore cannot know."""
    arrays = {
        "image_qualities": windows.qualities,
        "pair_scores": windows.pair_scores,
        "pair_margins": windows.pair_margins,
        "top_scores": windows.series["top_scores"],
        "entropies": windows.series["entropies"],
        "token_counts": windows.token_counts,
    }
    draw = np.random.default_rng(0)
    sketches = {"image": np.unique(windows.series["image_sketches"], axis=0), "text": windows.series["text_sketches"]}
    for kind, rows in sketches.items():
        mixed = rows[draw.permutation(len(rows))]
        third = len(rows) // 3
        arrays |= {f"{kind}_others": mixed[:third], f"{kind}_sketches": mixed[third:]}
    return Reference({**meta, "origin": "requests"}, {name: _thinned(rows) for name, rows in arrays.items()})


def _thinned(rows: np.ndarray, most: int = 1000) -> np.ndarray:
    """At most so many rows, by chance; the counts of all buckets stay."""
    if len(rows) <= most or len(rows) == BUCKETS:
        return rows
    return rows[np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False))]
