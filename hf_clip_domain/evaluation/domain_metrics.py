"""What a domain asks for besides retrieval, by the `metrics` of its YAML file (see `hf_clip_domain.domains.metrics`).

Each is measured where the data has what it needs, and skipped with the reason where not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

from hf_clip_domain.domains import Domain
from hf_clip_domain.domains.metrics import POINT, CaptionClasses, Detection, PerClass, Swaps, Within
from hf_clip_domain.evaluation.bootstrap import mean_replicates, statistic_replicates
from hf_clip_domain.evaluation.embedded import EmbeddedPairs
from hf_clip_domain.evaluation.grouped_retrieval import measure_within
from hf_clip_domain.evaluation.measurement import Measurement, joined
from hf_clip_domain.evaluation.ranking import TIE_TOLERANCE
from hf_clip_domain.evaluation.roc import roc_area, roc_curve
from hf_clip_domain.evaluation.zero_shot import NO_LABELS, Classified, class_metrics, classify
from hf_clip_domain.evaluation.zero_shot import REPLICATES as FEWER

LISTED = 50
FEWEST_ROWS = 10


def measure_domain(
    embedded: EmbeddedPairs, domain: Domain, classified: Classified | None, replicates: int
) -> Measurement:
    """Every metric that the domain names, each in its own group.

    Args:
        classified: the pictures by label, see `classify_labels`.
        replicates: of the bootstrap; figures that are computed anew each time get at most 200.
    """
    measures: dict[type, Callable[..., Measurement]] = {
        Detection: _detection,
        PerClass: _per_class,
        Swaps: _swaps,
        Within: measure_within,
        CaptionClasses: _caption_classes,
    }
    return joined(measures[type(metric)](embedded, metric, classified, replicates) for metric in domain.measures)


def _detection(embedded: EmbeddedPairs, metric: Detection, classified: Classified | None, replicates: int):
    if classified is None:
        return Measurement(skipped={"detection": NO_LABELS})
    normal = np.array([name.lower() in {label.lower() for label in metric.normal} for name in classified.classes])
    abnormal = ~normal[classified.labels]  # (n,)
    if not 0 < abnormal.mean() < 1:
        which = "no" if abnormal.all() else "every"
        return Measurement(skipped={"detection": f"{which} picture has one of the labels {', '.join(metric.normal)}"})
    probability = classified.probabilities[:, ~normal].sum(axis=1)
    called = ~normal[classified.predicted]

    def figures(rows: np.ndarray) -> dict[str, float]:
        return detection_figures(abnormal[rows], probability[rows], called[rows], metric.points)

    found = Measurement(figures(np.arange(len(abnormal))))
    found.metrics.update({"rows": float(len(abnormal))})
    found.details["missed"] = _rows(embedded, classified, abnormal & ~called, probability)
    found.details["false_alarms"] = _rows(embedded, classified, ~abnormal & called, -probability)
    if replicates:
        number = min(replicates, FEWER)
        found.replicates.update(statistic_replicates(figures, embedded.image_clusters, number))
    return found.prefixed("detection")


def detection_figures(
    abnormal: np.ndarray, probability: np.ndarray, called: np.ndarray, points: tuple[str, ...] = ()
) -> dict[str, float]:
    """Figures of finding what is abnormal.

    `auroc`; `sensitivity`, `specificity` and `precision` of the zero-shot decision itself; and for each point such as
    `specificity@sensitivity=0.9` what the ROC curve gives there: of all thresholds that keep the second to at least
    0.9 (rates of error: at most), the best of the first. A threshold read off the scored data flatters a little.

    Args:
        abnormal `(n,)` bool, probability `(n,)` that it is, called `(n,)` bool: taken for abnormal.

    Returns:
        NaN for all where only one of the two kinds is there.
    """
    if not 0 < abnormal.mean() < 1:
        return dict.fromkeys(("auroc", "sensitivity", "specificity", "precision", *points), float("nan"))
    found = {
        "auroc": roc_area(abnormal, probability),
        "sensitivity": float(called[abnormal].mean()),
        "specificity": float((~called[~abnormal]).mean()),
        "precision": float(abnormal[called].mean()) if called.any() else float("nan"),
    }
    alarms, hits = roc_curve(abnormal, probability)
    positives, negatives = abnormal.sum(), (~abnormal).sum()
    with np.errstate(invalid="ignore"):
        precision = hits * positives / (hits * positives + alarms * negatives)
    curves = {
        "sensitivity": hits,
        "recall": hits,
        "miss_rate": 1 - hits,
        "specificity": 1 - alarms,
        "false_alarm_rate": alarms,
        "precision": precision,
    }
    for point in points:
        wanted, given, level = POINT.fullmatch(point).groups()
        errors = given in ("miss_rate", "false_alarm_rate")
        kept = curves[given] <= float(level) + 1e-12 if errors else curves[given] >= float(level) - 1e-12
        values = curves[wanted][kept]
        best = np.nanmin if wanted in ("miss_rate", "false_alarm_rate") else np.nanmax
        found[point] = float(best(values)) if np.isfinite(values).any() else float("nan")
    return found


def _rows(
    embedded: EmbeddedPairs, classified: Classified, which: np.ndarray, order: np.ndarray
) -> list[dict[str, Any]]:
    """The pictures that `which` marks, the smallest `order` first: row, label, what it was taken for, file."""
    places = sorted(np.flatnonzero(which), key=lambda place: order[place])[:LISTED]
    return [
        {
            "row": embedded.rows[place],
            "label": classified.classes[classified.labels[place]],
            "taken_for": classified.classes[classified.predicted[place]],
            "file": _file(embedded, embedded.rows[place]),
        }
        for place in places
    ]


def _file(embedded: EmbeddedPairs, row: int) -> str | None:
    image = embedded.pairs[row]["image"] if len(embedded.pairs) else None
    return image.get("path") if isinstance(image, dict) else image if isinstance(image, str) else None


def _per_class(embedded: EmbeddedPairs, metric: PerClass, classified: Classified | None, replicates: int):
    if classified is None:
        return Measurement(skipped={"per_class": NO_LABELS})
    labels, classes = classified.labels, classified.classes
    counts = np.bincount(labels, minlength=len(classes))
    told = [one for one in np.argsort(-counts, kind="stable") if metric.at_least <= counts[one] < len(labels)]
    if not told:
        return Measurement(skipped={"per_class": f"no label has {metric.at_least} pictures"})

    def figures(rows: np.ndarray) -> dict[str, float]:
        found = {}
        for one in told:
            area = roc_area(labels[rows] == one, classified.probabilities[rows, one])
            found[f"auroc/{classes[one].replace('/', '-')}"] = area
        return found

    found = Measurement(figures(np.arange(len(labels))))
    matrix = confusion_matrix(labels, classified.predicted, labels=range(len(classes)))
    found.details["confusion"] = {"classes": classes, "rows_are_true": matrix.tolist()}
    if replicates:
        number = min(replicates, FEWER)
        found.replicates.update(statistic_replicates(figures, embedded.image_clusters, number))
    return found.prefixed("per_class")


def _swaps(embedded: EmbeddedPairs, metric: Swaps, classified: Classified | None, replicates: int):
    swapped = [swap_words(text, metric.words) for text in embedded.texts]
    asked = [place for place, text in enumerate(embedded.texts) if swapped[place] != text]
    pairs = embedded.positives[torch.isin(embedded.positives[:, 1], torch.tensor(asked, dtype=torch.int64))]
    if len(pairs) < FEWEST_ROWS:
        words = ", ".join(f"{one}/{other}" for one, other in metric.words)
        return Measurement(skipped={metric.title: f"fewer than {FEWEST_ROWS} captions say {words}"})
    place = {text: number for number, text in enumerate(asked)}
    other_embeds = embedded.embedder.embed_texts([swapped[text] for text in asked], progress=False)
    other = other_embeds[[place[int(text)] for text in pairs[:, 1]]]
    compare = embedded.embedder.similarity_function

    def scores(texts: torch.Tensor) -> torch.Tensor:
        parts = zip(embedded.image_embeds[pairs[:, 0]].split(64), texts.split(64), strict=True)
        return torch.cat([compare(images, own).diagonal() for images, own in parts])

    right = (scores(embedded.text_embeds[pairs[:, 1]]) > scores(other) + TIE_TOLERANCE).double().numpy()
    found = Measurement({"accuracy": float(right.mean()), "chance": 0.5, "pairs": float(len(right))})
    if replicates:
        cluster = embedded.image_clusters[pairs[:, 0].numpy()]
        found.replicates.update(mean_replicates({"accuracy": right}, cluster, replicates))
    return found.prefixed(metric.title)


def swap_words(text: str, words: tuple[tuple[str, str], ...]) -> str:
    """Exchange the words of each pair, whole words in any case: "Left of the right" -> "Right of the left"."""
    to = {one.lower(): other for pair in words for one, other in (pair, pair[::-1])}

    def exchanged(match: re.Match[str]) -> str:
        found = match.group()
        other = to[found.lower()]
        return other.upper() if found.isupper() else other.capitalize() if found[0].isupper() else other

    return re.sub(rf"\b(?:{'|'.join(map(re.escape, to))})\b", exchanged, text, flags=re.IGNORECASE)


def _caption_classes(embedded: EmbeddedPairs, metric: CaptionClasses, classified: Classified | None, replicates: int):
    patterns = {
        name: re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b", re.IGNORECASE)
        for name, words in metric.classes.items()
    }
    said: list[set[str]] = [set() for _ in embedded.rows]
    for image, text in embedded.positives.tolist():
        said[image] |= {name for name, pattern in patterns.items() if pattern.search(embedded.texts[text])}
    asked = [image for image, names in enumerate(said) if len(names) == 1]
    kinds = sorted({name for image in asked for name in said[image]})
    if len(asked) < FEWEST_ROWS or len(kinds) < 2:
        reason = f"fewer than {FEWEST_ROWS} captions name one of {', '.join(metric.classes)}, or all name the same"
        return Measurement(skipped={metric.title: reason})
    labels = np.array([kinds.index(next(iter(said[image]))) for image in asked])
    own = classify(embedded, embedded.image_embeds[asked], kinds, labels)
    found = Measurement(class_metrics(labels, own.probabilities))
    found.metrics.update({"chance": 1 / len(kinds), "classes": float(len(kinds)), "rows": float(len(asked))})
    matrix = confusion_matrix(labels, own.predicted, labels=range(len(kinds)))
    found.details["confusion"] = {"classes": kinds, "rows_are_true": matrix.tolist()}
    if replicates:
        found.replicates.update(
            statistic_replicates(
                lambda rows: class_metrics(labels[rows], own.probabilities[rows]),
                embedded.image_clusters[asked],
                min(replicates, FEWER),
            )
        )
    return found.prefixed(metric.title)
