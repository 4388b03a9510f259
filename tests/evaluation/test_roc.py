"""The ROC curve is scikit-learn's, ties and repeated rows included."""

import math

import numpy as np
import pytest
from sklearn import metrics

from hf_clip_domain.evaluation.roc import roc_area, roc_curve


@pytest.mark.parametrize("steps", [3, 10, 10**9], ids=["many ties", "some", "none"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_the_curve_and_its_area_are_scikit_learns(steps, share):
    draw = np.random.default_rng(steps)
    right = draw.random(200) < share
    scores = np.round((draw.random(200) + 0.5 * right) * steps) / steps
    rows = draw.integers(0, 200, 200)  # as a bootstrap draws them
    for which in (np.arange(200), rows):
        alarms, hits, _ = metrics.roc_curve(right[which], scores[which], drop_intermediate=False)
        found = roc_curve(right[which], scores[which])
        np.testing.assert_allclose(found[0], alarms, atol=1e-12)
        np.testing.assert_allclose(found[1], hits, atol=1e-12)
        area = metrics.roc_auc_score(right[which], scores[which])
        assert roc_area(right[which], scores[which]) == pytest.approx(area, abs=1e-12)


def test_rows_of_one_kind_have_no_area():
    assert math.isnan(roc_area(np.ones(5, bool), np.arange(5.0)))
    assert math.isnan(roc_area(np.zeros(5, bool), np.arange(5.0)))
