"""Zero-shot classification and the domains' metrics against scikit-learn and by hand; what is missing is said."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score, roc_curve

from hf_clip_domain.domains import Domain, load_domain
from hf_clip_domain.domains.metrics import METRICS, CaptionClasses, Detection, PerClass, Swaps, Within
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.calibration import expected_calibration_error
from hf_clip_domain.evaluation.domain_metrics import detection_figures, measure_domain, swap_words
from hf_clip_domain.evaluation.embedded import EmbeddedPairs
from hf_clip_domain.evaluation.zero_shot import class_metrics, classify_labels, measure_zero_shot
from hf_clip_domain.similarity import cosine


class Embedder:
    """Stands where a model would: a text's vector is the sum of random vectors of its words."""

    similarity_function = staticmethod(cosine)
    logit_scale = 10.0

    def embed_texts(self, texts, progress=None):
        return F.normalize(torch.stack([self._text(text) for text in texts]), dim=-1)

    def class_scores(self, images, labels):
        return cosine(images, self.embed_texts(labels))

    def _text(self, text):
        return sum(
            torch.randn(32, generator=torch.Generator().manual_seed(sum(map(ord, word)) * 31 + len(word)))
            for word in text.lower().split()
        )


def pairs_of(texts, labels=None, groups=None, noise=0.6):
    """One picture a text; a picture's vector is its text's, and noise."""
    embedder = Embedder()
    text_embeds = embedder.embed_texts(texts)
    torch.manual_seed(0)
    return EmbeddedPairs(
        embedder=embedder,
        pairs=[{"image": {"path": f"{row}.png", "bytes": None}} for row in range(len(texts))],
        rows=list(range(len(texts))),
        texts=list(texts),
        positives=torch.arange(len(texts)).repeat(2, 1).T,
        image_embeds=F.normalize(text_embeds + noise * torch.randn(len(texts), 32) / 32**0.5, dim=-1),
        text_embeds=text_embeds,
        image_labels=labels,
        text_labels=labels,
        image_groups=groups,
        text_groups=groups,
    )


def measured(embedded, *metrics, replicates=0):
    return measure_domain(embedded, Domain("mine", metrics=metrics), classify_labels(embedded), replicates)


KINDS = ("scratch", "hole", "no defect")


def inspection(rows=90, noise=1.5):
    labels = [KINDS[row % 3] for row in range(rows)]
    return pairs_of([f"{label} number{row}" for row, label in enumerate(labels)], labels, noise=noise)


def test_classification_is_scikit_learns():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, 200)
    probabilities = torch.tensor(draw.normal(size=(200, 4)) + 1.5 * np.eye(4)[labels]).softmax(1).numpy()
    found = class_metrics(labels, probabilities)
    predicted = probabilities.argmax(1)
    assert found == pytest.approx(
        {
            "accuracy": np.mean(predicted == labels),
            "balanced_accuracy": balanced_accuracy_score(labels, predicted),
            "macro_f1": f1_score(labels, predicted, average="macro"),
            "auroc": roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        }
    )


def test_zero_shot_of_labels_and_its_intervals():
    embedded = inspection()
    classified = classify_labels(embedded)
    found = measure_zero_shot(embedded, classified, replicates=50)
    scores = embedded.embedder.class_scores(embedded.image_embeds, sorted(KINDS))
    probabilities = (10 * scores).softmax(1)
    labels = torch.tensor([sorted(KINDS).index(label) for label in embedded.image_labels])
    assert found.metrics["zero_shot/accuracy"] == pytest.approx((probabilities.argmax(1) == labels).double().mean())
    assert found.metrics["zero_shot/ece"] == pytest.approx(expected_calibration_error(probabilities, labels), abs=1e-5)
    assert found.metrics["zero_shot/chance"] == pytest.approx(1 / 3) and found.metrics["zero_shot/rows"] == 90
    low, high = np.quantile(found.replicates["zero_shot/accuracy"], [0.02, 0.98])
    assert low < found.metrics["zero_shot/accuracy"] < high


def test_detection_by_hand():
    abnormal = np.array([True] * 4 + [False] * 6)
    probability = np.array([0.9, 0.8, 0.7, 0.2, 0.75, 0.5, 0.4, 0.3, 0.1, 0.05])
    points = ("specificity@sensitivity=0.75", "precision@recall=0.75", "false_alarm_rate@miss_rate=0.25")
    points += ("sensitivity@specificity=0.9", "precision@recall=0.9")
    found = detection_figures(abnormal, probability, probability > 0.45, points)
    assert found == pytest.approx(
        {
            "auroc": (6 + 6 + 5 + 2) / 24,
            "sensitivity": 3 / 4,
            "specificity": 4 / 6,
            "precision": 3 / 5,
            # At 0.7 three of four are found, with one false alarm; all four only with five of them.
            "specificity@sensitivity=0.75": 5 / 6,
            "precision@recall=0.75": 3 / 4,
            "false_alarm_rate@miss_rate=0.25": 1 / 6,
            "sensitivity@specificity=0.9": 2 / 4,
            "precision@recall=0.9": 4 / 8,
        }
    )


def test_points_lie_on_scikit_learns_curve():
    draw = np.random.default_rng(3)
    abnormal = draw.random(300) < 0.3
    probability = draw.normal(size=300) + abnormal
    found = detection_figures(abnormal, probability, probability > 0, ("specificity@sensitivity=0.9",))
    alarms, hits, _ = roc_curve(abnormal, probability)
    assert found["specificity@sensitivity=0.9"] == pytest.approx(1 - alarms[hits >= 0.9].min())


def test_what_was_missed_is_named():
    embedded = inspection()
    found = measured(embedded, Detection(normal=("No Defect",)), PerClass(), replicates=20)
    classified = classify_labels(embedded)
    normal = classified.classes.index("no defect")
    expected = {
        row
        for row, label in enumerate(embedded.image_labels)
        if label != "no defect" and classified.predicted[row] == normal
    }
    listed = found.details["detection/missed"]
    assert expected and {one["row"] for one in listed} == expected
    assert all(one["file"] == f"{one['row']}.png" and one["taken_for"] == "no defect" for one in listed)
    assert found.metrics["detection/sensitivity"] == pytest.approx(1 - len(expected) / 60)
    matrix = np.array(found.details["per_class/confusion"]["rows_are_true"])
    assert matrix.sum() == 90 and matrix.sum(axis=1).tolist() == [30, 30, 30]
    area = roc_auc_score(classified.labels == normal, classified.probabilities[:, normal])
    assert found.metrics["per_class/auroc/no defect"] == pytest.approx(area)
    assert len(found.replicates["detection/auroc"]) == 20


def test_swapping_sides():
    words = (("left", "right"), ("upper", "lower"))
    assert swap_words("Left of the right LOWER edge, leftover", words) == "Right of the left UPPER edge, leftover"
    texts = [f"{side} lesion number{row}" for row, side in enumerate(("left", "right") * 20)] + ["no side"] * 1
    found = measured(pairs_of(texts, noise=0.3), Swaps((("left", "right"),), "laterality"))
    assert found.metrics == {"laterality/accuracy": 1.0, "laterality/chance": 0.5, "laterality/pairs": 40.0}
    blind = pairs_of(texts)
    blind = dataclasses.replace(blind, image_embeds=torch.randn(41, 32))
    assert 0.2 < measured(blind, Swaps((("left", "right"),), "laterality")).metrics["laterality/accuracy"] < 0.8


def test_within_and_across_groups_are_two_parts_of_the_whole():
    groups = [f"chapter {row // 5}" for row in range(40)]
    texts = [f"chapter{row // 5} figure{row}" for row in range(40)]
    embedded = pairs_of(texts, groups=groups, noise=2.5)
    found = measured(embedded, Within("group"), replicates=30)
    scores = cosine(embedded.image_embeds, embedded.text_embeds)
    own = scores.diagonal()[:, None]
    same = torch.tensor([[a == b for b in groups] for a in groups])
    for name, inside in (("within_group", same), ("across_group", ~same)):
        rank = 1 + ((scores >= own) & inside & ~torch.eye(40, dtype=torch.bool)).sum(1).double()
        assert found.metrics[f"{name}/image_to_text/mrr"] == pytest.approx(rank.reciprocal().mean().item())
    assert found.metrics["within_group/image_to_text/chance_recall@1"] == pytest.approx(1 / 5)
    assert found.metrics["across_group/image_to_text/candidates"] == 36
    # Whole chapters are resampled, and eight are too few for an interval.
    assert not found.replicates


def test_the_type_of_chart_is_taken_from_the_caption():
    names = ("bar chart", "map", "photograph")
    texts = [f"{names[row % 3]} of thing{row}" for row in range(60)] + ["a map beside a photograph", "a thing"]
    metric = CaptionClasses({name: (name, f"{name}s") for name in names}, "chart_type")
    found = measured(pairs_of(texts, noise=0.2), metric)
    assert found.metrics["chart_type/rows"] == 60 and found.metrics["chart_type/accuracy"] > 0.9


def test_what_cannot_be_measured_says_why():
    embedded = pairs_of([f"thing{row}" for row in range(20)])
    metrics = (Detection(("normal",)), PerClass(), Swaps((("left", "right"),)), Within("group"))
    metrics += (CaptionClasses({"a map": ("map",), "a chart": ("chart",)}),)
    found = measured(embedded, *metrics)
    assert not found.metrics and len(found.skipped) == 5
    assert "no labels" in found.skipped["detection"] and "left/right" in found.skipped["swaps"]
    labelled = inspection()
    assert "no picture has one of" in measured(labelled, Detection(("fine",))).skipped["detection"]


@pytest.mark.parametrize("name", ["medical", "industrial", "scientific"])
def test_the_packaged_domains_name_their_metrics_and_keep_them(name, tmp_path):
    domain = load_domain(name)
    assert domain.measures
    domain.save(tmp_path)
    assert load_domain(tmp_path) == domain


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("{metric: detecton, normal: [ok]}", "did you mean 'detection'"),
        ("{metric: detection}", "needs `normal`"),
        ("{metric: detection, normal: []}", "at least one label"),
        ("{metric: detection, normal: [ok], points: [recall@5]}", "specificity@sensitivity=0.9"),
        ("{metric: detection, normal: [ok], point: []}", "unknown key"),
        ("{metric: swaps, words: [[left, left]]}", "two different words"),
        ("{metric: swaps, words: [[left, right]], title: A B}", "small word"),
        ("{metric: within, column: patient}", "group"),
        ("{metric: caption_classes, classes: {map: [map]}}", "at least two"),
    ],
)
def test_a_domain_with_a_wrong_metric_is_told(tmp_path, metric, told):
    (tmp_path / "mine.yaml").write_text(f"name: mine\nmetrics:\n  - {metric}\n")
    with pytest.raises(ClipDomainError, match=r"metrics\[0\]") as error:
        load_domain(tmp_path / "mine.yaml")
    assert told in str(error.value)


def test_the_guides_metrics_are_understood(tmp_path):
    guide = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", guide, re.DOTALL).group(1)
    (tmp_path / "mine.yaml").write_text("name: mine\n" + block)
    assert {measure.metric for measure in load_domain(tmp_path / "mine.yaml").measures} == set(METRICS)
