"""Mean average precision by label against scikit-learn's."""

import math

import pytest
import torch
from sklearn.metrics import average_precision_score

from hf_clip_domain.evaluation.by_label import mean_average_precision


@pytest.mark.parametrize("chunk", [3, 512])
def test_equals_the_reference(chunk):
    generator = torch.Generator().manual_seed(0)
    queries, candidates = (torch.randn(rows, 4, generator=generator) for rows in (11, 30))
    query_labels = [f"kind {index % 4}" for index in range(11)]
    candidate_labels = [f"kind {index % 3}" for index in range(30)]
    scores = torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(candidates, dim=1).T
    expected = [
        average_precision_score([other == label for other in candidate_labels], row.numpy())
        for label, row in zip(query_labels, scores, strict=True)
        if label in candidate_labels
    ]
    found = mean_average_precision(queries, candidates, query_labels, candidate_labels, chunk=chunk)
    assert len(expected) < len(queries)  # "kind 3" is nowhere, and is not asked
    assert found == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_a_model_that_tells_nothing_apart_scores_as_if_right_ones_came_last():
    same = torch.ones(4, 2)
    assert mean_average_precision(same, same, "aabb", "aabb") == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_nothing_to_ask():
    assert math.isnan(mean_average_precision(torch.ones(1, 2), torch.ones(1, 2), "a", "b"))
