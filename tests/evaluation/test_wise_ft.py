"""The choice between base and tuned model."""

import pytest

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.plots import plot_forgetting
from hf_clip_domain.evaluation.wise_ft import Point, parse_alphas, sweep


def model(alpha):
    """A domain that is learnt steadily, and general knowledge that is lost faster and faster."""
    return Point(alpha, target=0.2 + 0.4 * alpha, general=0.5 - 0.2 * alpha**2)


def test_the_budget_holds_and_is_nearly_spent():
    tried = []
    found = sweep(lambda alpha: tried.append(alpha) or model(alpha), budget=5)  # 20 a^2 <= 5: a <= 0.5 exactly
    assert found.best.alpha == 0.5 and found.lost(found.best) == pytest.approx(5)
    assert len(tried) == len(set(tried)) == 8 and min(tried) == 0
    found = sweep(model, budget=7)  # a <= 0.5916
    assert found.lost(found.best) <= 7 and 0.5916 - found.best.alpha < 1 / 32
    assert [point.alpha for point in found.points] == sorted(point.alpha for point in found.points)


def test_a_budget_that_all_keep_takes_the_best_and_searches_no_further():
    found = sweep(model, budget=20)
    assert found.best.alpha == 1 and len(found.points) == 5


def test_nothing_within_the_budget_beats_the_base():
    found = sweep(lambda alpha: Point(alpha, 0.3 if alpha else 0.4, 0.5 - alpha / 10), budget=1.5)
    assert found.best.alpha == 0 and "the base itself, is kept" in found.verdict()
    found = sweep(lambda alpha: Point(alpha, 0.3 + alpha, 0.4 if alpha else 0.5), budget=1.5)
    assert found.best.alpha == 0 and "over the budget" in found.table()


def test_of_equals_the_one_that_keeps_more_and_then_the_nearest():
    assert sweep(lambda alpha: Point(alpha, 0.5, 0.4 + alpha / 10), 1, [0.5, 1]).best.alpha == 1
    assert sweep(lambda alpha: Point(alpha, 0.5, 0.4), 1, [0.5, 1]).best.alpha == 0


def test_given_alphas_alone_are_tried_with_the_base(tmp_path):
    found = sweep(model, 5, [0.3, 0.6])
    assert [point.alpha for point in found.points] == [0, 0.3, 0.6] and found.best.alpha == 0.3
    assert found.to_json()["alpha"] == 0.3 and len(found.to_json()["points"]) == 3
    file = plot_forgetting(found.points, found.best, 0.45, tmp_path / "curve.png")
    assert 5_000 < file.stat().st_size < 60_000


def test_alphas_are_read_or_refused():
    assert parse_alphas("auto") is None and parse_alphas("0, 0.5,1") == [0, 0.5, 1]
    for wrong in ("", "half", "0,2", "-0.1", "nan"):
        with pytest.raises(ClipDomainError, match="expected 'auto', or numbers from 0 to 1"):
            parse_alphas(wrong)
