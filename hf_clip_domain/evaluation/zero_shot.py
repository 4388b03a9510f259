"""Zero-shot classification of pictures by their labels, each label put into the domain's prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hf_clip_domain.evaluation.bootstrap import statistic_replicates
from hf_clip_domain.evaluation.calibration import classes_of, expected_calibration_error
from hf_clip_domain.evaluation.embedded import EmbeddedPairs
from hf_clip_domain.evaluation.measurement import Measurement
from hf_clip_domain.evaluation.roc import roc_area
from hf_clip_domain.models.dual_encoder import find_logit_scale

# Each resample is computed anew, so there are fewer of them than for means.
REPLICATES = 200
NO_LABELS = "the pairs have no labels that are classes (every row one, and 2 classes to a quarter of the rows)"


@dataclass(frozen=True)
class Classified:
    """Pictures with their class and the probabilities of all classes.

    Attributes:
        classes: names, in the order of the columns.
        labels `(n,)`: index of the right class.
        probabilities `(n, c)`: rows of sum 1.
    """

    classes: list[str]
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        return self.probabilities.argmax(axis=1)


def classify_labels(embedded: EmbeddedPairs) -> Classified | None:
    """Every picture's probabilities over the labels of the data; `None` where they are no classes."""
    classes = classes_of(embedded.image_labels or [None])
    if classes is None:
        return None
    place = {name: index for index, name in enumerate(classes)}
    labels = np.array([place[label] for label in embedded.image_labels])
    return classify(embedded, embedded.image_embeds, classes, labels)


def classify(embedded: EmbeddedPairs, image_embeds: torch.Tensor, classes: list[str], labels: np.ndarray) -> Classified:
    """Probabilities of `classes` for pictures already embedded, as `ClipEmbedder.classify`."""
    scores = embedded.embedder.class_scores(image_embeds, classes)
    scale = embedded.embedder.logit_scale or find_logit_scale(embedded.embedder.model).detach().float().exp().cpu()
    return Classified(classes, labels, (scale * scores).double().softmax(dim=-1).numpy())


def measure_zero_shot(
    embedded: EmbeddedPairs, classified: Classified | None, replicates: int = REPLICATES
) -> Measurement:
    """`zero_shot/accuracy`, `balanced_accuracy`, `macro_f1`, `auroc` (one class against the rest, averaged over the
    classes), `ece` (with the model's own temperature), `chance` (1 / classes), `classes` and `rows`."""
    if classified is None:
        return Measurement(skipped={"zero_shot": NO_LABELS})
    return _measured(classified, embedded.image_clusters, replicates).prefixed("zero_shot")


def class_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The figures of zero-shot classification for `labels` (n,) and `probabilities` (n, c), as scikit-learn has them.

    Classes that no row has are left out of the averages. The area under the ROC curve is the mean of each class against
    all others, NaN where only one class is there.
    """
    count, predicted = probabilities.shape[1], probabilities.argmax(axis=1)
    rows, called = np.bincount(labels, minlength=count), np.bincount(predicted, minlength=count)
    right = np.bincount(labels[predicted == labels], minlength=count)
    present = np.flatnonzero(rows)
    areas = [roc_area(labels == one, probabilities[:, one]) for one in present]
    return {
        "accuracy": float(right.sum() / len(labels)),
        "balanced_accuracy": float(np.mean(right[present] / rows[present])),
        "macro_f1": float(np.mean(2 * right[present] / (rows[present] + called[present]))),
        "auroc": float(np.mean(areas)),
    }


def _measured(classified: Classified, cluster: np.ndarray, replicates: int) -> Measurement:
    labels, probabilities = classified.labels, classified.probabilities
    found = Measurement(class_metrics(labels, probabilities))
    found.metrics["ece"] = expected_calibration_error(torch.from_numpy(probabilities), torch.from_numpy(labels))
    found.metrics.update(
        {
            "chance": 1 / len(classified.classes),
            "classes": float(len(classified.classes)),
            "rows": float(len(labels)),
        }
    )
    if replicates:
        found.replicates.update(
            statistic_replicates(lambda rows: class_metrics(labels[rows], probabilities[rows]), cluster, replicates)
        )
    return found
