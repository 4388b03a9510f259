"""The probe: the same scores as any retrieval, prepared once."""

import math

import pytest

from hf_clip_domain.domains import load_domain
from hf_clip_domain.evaluation import EvaluationReport, RetrievalEvaluator
from hf_clip_domain.evaluation.forgetting import ForgettingProbe, RepeatedEvaluator, mean_recall, retained


class Counted(list):
    """Rows that count how often a picture was asked for."""

    asked = 0

    def __getitem__(self, row):
        self.asked += 1
        return super().__getitem__(row)


@pytest.mark.parametrize("room", [10**9, 5 * 3 * 32 * 32 * 4])
def test_prepared_pictures_score_the_same_and_are_read_once_as_far_as_they_fit(clip, rows, room):
    (model, processor), domain = clip(), load_domain("general")
    pairs = Counted(rows(12))
    plain = RetrievalEvaluator(rows(12), processor, domain=domain, batch_size=5)(model)
    repeated = RepeatedEvaluator(pairs, processor, domain=domain, batch_size=5, keep_bytes=room)
    assert repeated(model) == plain
    pairs.asked = 0
    assert repeated(model) == plain
    assert pairs.asked == (0 if room == 10**9 else 7)
    other, _ = clip(seed=1)
    assert repeated(other) == RetrievalEvaluator(rows(12), processor, domain=domain, batch_size=5)(other)


def test_the_probe_names_its_group_and_the_mean_by_which_forgetting_is_told(clip, rows):
    model, processor = clip()
    scores = ForgettingProbe(rows(12), processor, domain=load_domain("general"))(model)
    assert all(key.startswith("general/") for key in scores)
    both = [scores[f"general/{direction}/recall@10"] for direction in ("image_to_text", "text_to_image")]
    assert scores["general/mean_recall@10"] == sum(both) / 2 == mean_recall(scores, "general")


def test_what_is_retained_stands_in_the_report():
    sides = [
        {
            f"general/{direction}/recall@{k}": value
            for direction in ("image_to_text", "text_to_image")
            for k in (1, 5, 10)
        }
        | {"general/mean_recall@10": value}
        for value in (0.5, 0.4)
    ]
    found = retained(*sides)
    assert found == {"general/retained_recall@10": 0.8, "general/lost_points": pytest.approx(10)}
    report = EvaluationReport(sides[0], sides[1] | found)
    assert "Retained: 80.0% of the mean Recall@10, 10.0 points lost." in report.table()
    assert "Retained: 80.0%" in report.markdown()
    assert retained({}, sides[1]) == {}
    assert math.isnan(retained({"general/mean_recall@10": 0.0}, sides[1])["general/retained_recall@10"])
