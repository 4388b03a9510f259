"""Probabilities that mean what they say: one temperature fitted after training, and how much it helps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.models.beside import CALIBRATION_FILE
from hf_clip_domain.models.dual_encoder import find_logit_scale

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """The multiplier of the similarities at which zero-shot probabilities fit, and what it changes.

    Attributes:
        logit_scale: to be used in place of the model's (already exponentiated).
        classes: the labels told apart.
        ece_before, ece_after: expected calibration error with the model's own scale and with this one, on pairs that
            the fit did not see.
    """

    logit_scale: float
    classes: list[str]
    ece_before: float
    ece_after: float

    def save(self, folder: str | Path) -> None:
        """Write `folder/calibration.json`, which `ClipEmbedder.from_pretrained` reads."""
        (Path(folder) / CALIBRATION_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def calibrate(embedder: ClipEmbedder, fit_pairs: Any, check_pairs: Any) -> Calibration | None:
    """Fit the temperature of zero-shot classification by label; `None` where the labels are no classes.

    Classes are the labels of `fit_pairs` when every row has one and they number from 2 to a quarter of the rows.

    Args:
        fit_pairs, check_pairs: rows of `image` and `label`; the validation and the test split, say.
    """
    classes = classes_of(fit_pairs["label"])
    if classes is None or not set(check_pairs["label"]) <= set(classes):
        return None
    (fit_scores, fit_labels), (scores, labels) = (
        _scores(embedder, pairs, classes) for pairs in (fit_pairs, check_pairs)
    )
    own = find_logit_scale(embedder.model).detach().float().exp().item()
    fitted = fit_logit_scale(fit_scores, fit_labels, own)
    before, after = (expected_calibration_error((scale * scores).softmax(dim=1), labels) for scale in (own, fitted))
    return Calibration(fitted, classes, before, after)


def classes_of(labels: Sequence[str | None]) -> list[str] | None:
    """The labels where every row has one and they number from 2 to a quarter of the rows; else they are no classes."""
    classes = sorted({label for label in labels if label is not None})
    return classes if None not in labels and 2 <= len(classes) <= len(labels) / 4 else None


def fit_logit_scale(scores: torch.Tensor, labels: torch.Tensor, start: float) -> float:
    """The multiplier of `scores` (n, c) with the smallest cross-entropy of `labels` (n,), from 0.01 to 1,000.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2 (temperature scaling).
    """
    scores = scores.double()
    logarithm = torch.tensor(math.log(start), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logarithm], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logarithm.clamp(math.log(0.01), math.log(1000)).exp() * scores, labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return logarithm.detach().clamp(math.log(0.01), math.log(1000)).exp().item()


def expected_calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = BINS) -> float:
    """Mean gap between confidence and accuracy over `bins` equal bins of confidence, weighted by their counts.

    Source: Guo et al. 2017, equation 3.

    Args:
        probabilities: `(n, c)`, rows of sum 1.
        labels: `(n,)` integers.
    """
    confidence, predicted = probabilities.max(dim=1)
    right = (predicted == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    error = 0.0
    for index in range(bins):
        inside = place == index
        if bool(inside.any()):
            error += float(inside.sum()) * abs(float(right[inside].mean() - confidence[inside].double().mean()))
    return error / len(labels)


def _scores(embedder: ClipEmbedder, pairs: Any, classes: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    scores = embedder.class_scores(pairs["image"], classes)
    return scores, torch.tensor([classes.index(label) for label in pairs["label"]])
