"""The tests behind drift monitoring: right figures, honest false alarms, and power."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import binom, ks_2samp, norm

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.ops.drift.calibration import joint_p_values, null_distribution, splits
from hf_clip_domain.ops.drift.detector import Rule, judge, look
from hf_clip_domain.ops.drift.reference import Reference
from hf_clip_domain.ops.drift.two_sample import (
    KernelDistance,
    MeanDistance,
    QualityDistance,
    ScoreDistance,
    UnseenTerms,
    scale,
)
from hf_clip_domain.ops.drift.windows import Window
from hf_clip_domain.serving.centre import Centre
from hf_clip_domain.serving.quality import QUALITIES, quality
from hf_clip_domain.serving.sketches import BUCKETS, sketch
from hf_clip_domain.serving.statistics import SERIES


def most(trials, chance):
    """So many false alarms that more would come once in a thousand times."""
    return binom.ppf(0.999, trials, chance)


def window(images=None, texts=None, scores=None, name="window"):
    series = {key: np.empty((0, *shape), dtype=kind) for key, (kind, shape) in SERIES.items()}
    for key, rows in (("image_sketches", images), ("text_sketches", texts)):
        if rows is not None:
            series[key] = sketch(rows)
    if scores is not None:
        series["pair_scores"] = np.asarray(scores, dtype=np.float32)
    return Window(name, 0.0, 1.0, 1, series, np.zeros(BUCKETS, dtype=np.int64), 0)


def test_the_distances_are_what_they_are_named_for():
    draw = np.random.default_rng(0)
    rows, other = draw.normal(size=(40, 5)), draw.normal(0.5, 1, size=(30, 5))
    first = draw.random((3, 40)) < 0.4

    kernel = KernelDistance(rows, draw.normal(size=(50, 5)) * [1, 2, 3, 4, 5])
    a, b = kernel.whitened(rows), kernel.whitened(other)

    def k(x, y):
        return np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / kernel.width)

    def unbiased(x, y):
        n, m = len(x), len(y)
        own = (k(x, x).sum() - n) / (n * (n - 1)) + (k(y, y).sum() - m) / (m * (m - 1))
        return scale(n, m) * (own - 2 * k(x, y).mean())

    assert kernel.against(other) == pytest.approx(unbiased(a, b), abs=1e-4)
    assert kernel.of_splits(first) == pytest.approx([unbiased(a[side], a[~side]) for side in first], abs=1e-4)

    scores, more = np.round(draw.normal(size=40), 1), np.round(draw.normal(1, 1, size=25), 1)  # with ties
    test = ScoreDistance(scores)
    assert test.against(more) == pytest.approx(np.sqrt(scale(40, 25)) * ks_2samp(scores, more).statistic)
    expected = [np.sqrt(scale(s.sum(), (~s).sum())) * ks_2samp(scores[s], scores[~s]).statistic for s in first]
    assert test.of_splits(first) == pytest.approx(expected)

    unseen, tokens = draw.integers(0, 4, 40), draw.integers(5, 9, 40)
    terms = UnseenTerms(unseen, tokens)
    rates = [(unseen[~s].sum() / tokens[~s].sum(), unseen[s].sum() / tokens[s].sum(), s.sum()) for s in first]
    expected = [np.sqrt(scale(n, 40 - n)) * (there - here) for there, here, n in rates]
    assert terms.of_splits(first) == pytest.approx(expected)
    assert terms.against(0.5, 40) == pytest.approx(np.sqrt(20) * (0.5 - terms.rate - 0.01))


def test_one_new_term_among_texts_of_a_template_is_no_drift():
    terms = UnseenTerms(np.zeros(400), np.full(400, 28))
    null = null_distribution({"terms": terms}, {"terms": np.arange(400)}, 999)
    for rate, drifted in ((1 / 14_000, False), (0.005, False), (0.02, True)):
        assert (joint_p_values(null, np.array([terms.against(rate, 500)]))[1][0] <= 0.01) == drifted


def test_a_model_that_tells_pairs_apart_only_just_shows_shuffled_captions_when_centred():
    """What a picture and a text have alone varies more than what they have together."""
    draw = np.random.default_rng(0)

    def pairs(count):
        shared = draw.normal(size=(count, 16))
        sides = [shared + 2 * draw.normal(size=(count, 16)) for _ in range(2)]
        return [side * 0.02 + np.eye(16)[0] * (1 + 0.1 * draw.normal(size=(count, 1))) for side in sides]

    centre = Centre(*(side.mean(axis=0) for side in pairs(400)))
    images, texts = pairs(300)
    seen, said = pairs(300)
    plain = {
        "alignment": ScoreDistance((images * texts).sum(axis=1)),
        "pairing": MeanDistance(centre.margins(images, texts)),
    }
    null = null_distribution(plain, dict.fromkeys(plain, np.arange(300)), 499)
    first = draw.random((4, 300)) < 0.4
    margins, test = centre.margins(images, texts), plain["pairing"]
    expected = [abs(margins[side].mean() - margins[~side].mean()) / margins.std() for side in first]
    expected *= np.sqrt([scale(side.sum(), (~side).sum()) for side in first])
    assert test.of_splits(first) == pytest.approx(expected, rel=1e-4)

    def p_values(said):
        found = [plain["alignment"].against((seen * said).sum(axis=1)), test.against(centre.margins(seen, said))]
        return joint_p_values(null, np.array(found))[1]

    assert (p_values(said) > 0.05).all()
    alignment, pairing = p_values(np.roll(said, 1, axis=0))
    assert alignment > 0.05 and pairing < 0.01


def test_the_quality_of_pictures_is_the_largest_distance_of_its_four_figures():
    draw = np.random.default_rng(0)
    rows, other = draw.normal(size=(40, 4)), draw.normal(size=(25, 4))
    other[:, 2] += 1
    first = draw.random((3, 40)) < 0.4
    test = QualityDistance(rows)
    expected = max(ks_2samp(rows[:, place], other[:, place]).statistic for place in range(4))
    assert test.against(other) == pytest.approx(np.sqrt(scale(40, 25)) * expected)
    expected = [max(ScoreDistance(column).of_splits(side[None])[0] for column in rows.T) for side in first]
    assert test.of_splits(first) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("brightness", lambda picture: picture + 0.4),
        ("contrast", lambda picture: 2 * picture),
        ("sharpness", lambda picture: gaussian_filter(picture, (0, 2, 2))),
        ("noise", lambda picture: picture + np.random.default_rng(1).normal(0, 0.3, picture.shape)),
    ],
)
def test_each_figure_of_quality_tells_what_it_is_named_for(name, change):
    """Of soft slopes with an edge: it is noise that the edge is not taken for."""
    slope = np.linspace(-1, 1, 64)[None, :] * np.ones((64, 1))
    picture = np.stack([slope + (slope.T > 0.2)] * 3) + np.random.default_rng(0).normal(0, 0.02, (3, 64, 64))
    before, after = quality(picture), quality(change(picture))
    place = QUALITIES.index(name)
    moved = after[place] - before[place]
    assert moved < -0.5 if name == "sharpness" else moved > 0.3
    still = {"brightness": [1, 2, 3], "contrast": [2], "sharpness": [], "noise": [0]}[name]
    assert np.abs(after - before)[still].max(initial=0) < 0.05


def test_splits_keep_clusters_together():
    clusters = np.repeat(np.arange(30), 4)
    for first in splits(clusters, 700):
        assert (first.reshape(-1, 30, 4).std(axis=2) == 0).all() and (first.sum(axis=1) == 60).all()
    few = next(splits(np.repeat([0, 1, 2], 10), 50))  # too few clusters to deal out
    assert (few.reshape(50, 3, 10).std(axis=2) > 0).any()


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_said_and_drift_is_found():
    """Reference and window of one population, then shifted a little in one direction of little variance."""
    draw, trials, found = np.random.default_rng(0), 80, 0
    alarms = {"whitened by others": 0, "whitened by the reference itself": 0}
    spread = np.linspace(0.2, 2, 32)
    for _ in range(trials):
        rows, own, others = (draw.normal(size=(size, 32)) * spread for size in (150, 200, 200))
        scores, own_scores = rows[:, 1] + 1, own[:, 1] + 1  # depends on the pictures
        for kind, metric in zip(alarms, (others, rows), strict=True):
            tests = {"image": KernelDistance(rows, metric), "alignment": ScoreDistance(scores)}
            null = null_distribution(tests, dict.fromkeys(tests, np.arange(150)), 499)
            same = [tests["image"].against(own), tests["alignment"].against(own_scores)]
            alarms[kind] += joint_p_values(null, np.array(same))[1].min() <= 0.05
            if metric is others:
                moved = [tests["image"].against(own + 0.5 * np.eye(32)[0]), same[1]]
                found += joint_p_values(null, np.array(moved))[1][0] <= 0.05
    assert alarms["whitened by others"] <= most(trials, 0.05) and found >= 0.95 * trials
    assert alarms["whitened by the reference itself"] > trials / 2  # why it is not


@pytest.mark.slow
def test_traffic_from_new_clusters_is_no_drift_only_when_clusters_are_dealt_out():
    """Twelve rows a chapter that resemble each other: a window of other chapters differs more than single rows would."""
    draw, trials = np.random.default_rng(1), 60
    alarms = {"clusters": 0, "rows": 0}
    for _ in range(trials):
        centres, own = draw.normal(size=(40, 8)), draw.normal(size=(40, 8))
        rows = np.repeat(centres, 12, axis=0) + draw.normal(size=(480, 8))
        other = np.repeat(own, 12, axis=0) + draw.normal(size=(480, 8))
        test = {"image": KernelDistance(rows, draw.normal(size=(100, 8)))}
        for kind, clusters in (("clusters", np.repeat(np.arange(40), 12)), ("rows", np.arange(480))):
            null = null_distribution(test, {"image": clusters}, 199)
            alarms[kind] += joint_p_values(null, np.array([test["image"].against(other)]))[1][0] <= 0.05
    assert alarms["clusters"] <= most(trials, 0.05) and alarms["rows"] > trials / 2


def test_joint_p_values_hold_for_all_tests_together_and_name_the_one_that_drifted():
    draw = np.random.default_rng(0)

    def population(rows):  # two tests that go together, and two of their own
        shared = draw.normal(size=(rows, 1))
        return np.concatenate([shared, shared + 0.1 * draw.normal(size=(rows, 1)), draw.normal(size=(rows, 2))], axis=1)

    null = population(999)
    smallest = [joint_p_values(null, row)[1].min() for row in population(400)]
    for level in (0.05, 0.2):
        assert abs(np.mean(np.array(smallest) <= level) - level) < 3.5 * np.sqrt(level * (1 - level) / 400)
    plain, adjusted = joint_p_values(null, np.array([0, 0, 50, 0]))
    assert plain[2] == 1 / 1000 and adjusted[2] <= 5 / 1000 and (adjusted[[0, 1, 3]] > 0.3).all()
    assert (adjusted >= plain).all()


@pytest.fixture(scope="module")
def reference():
    draw = np.random.default_rng(0)
    shape = draw.normal(size=(64, 64))
    rows = draw.normal(size=(400, 64)) @ shape
    others = draw.normal(size=(300, 64)) @ shape
    arrays = {"image_sketches": sketch(rows), "text_sketches": sketch(rows[:, ::-1])}
    arrays |= {"image_others": sketch(others), "text_others": sketch(others[:, ::-1])}
    return Reference({}, {**arrays, "pair_scores": draw.normal(size=400).astype(np.float32)}), shape


def test_each_part_is_told_apart(reference):
    reference, shape = reference
    draw = np.random.default_rng(1)
    rows = draw.normal(size=(300, 64)) @ shape
    strange = draw.normal(size=(300, 64))
    scores = draw.normal(size=300)
    level = Rule().level
    cases = {
        (): window(rows, rows[:, ::-1], scores),
        ("image",): window(strange, rows[:, ::-1], scores),
        ("text",): window(rows, strange, scores),
        ("alignment",): window(rows, rows[:, ::-1], scores - 1),
        ("image", "text"): window(strange, strange),
    }
    for expected, seen in cases.items():
        assert look(reference, [seen], level).drifted == expected


def test_too_few_rows_are_not_tested(reference):
    seen = look(reference[0], [window(np.eye(64)[:20], scores=np.zeros(300))], 0.01)
    assert not seen.tests  # twenty pictures, and one score three hundred times
    assert not look(reference[0], [window(np.repeat(np.eye(64)[:1], 500, axis=0))], 0.01).tests


@pytest.mark.slow
def test_the_stated_chance_holds_over_a_horizon_with_one_reference():
    draw, horizons, rule = np.random.default_rng(2), 60, Rule(0.2, 10, (1, 4))
    alarms = 0
    for _ in range(horizons):
        reference = Reference({}, {"pair_scores": draw.normal(size=120)}, resamples=499)
        windows = [window(scores=draw.normal(size=150), name=str(number)) for number in range(rule.horizon)]
        alarms += any(seen.drifted for seen in judge(reference, windows, rule))
    assert alarms <= most(horizons, rule.false_alarms)


def test_windows_together_find_what_each_alone_does_not():
    rule = Rule(0.05, 4, (1, 4))
    reference = Reference({}, {"pair_scores": norm.ppf((np.arange(2000) + 0.5) / 2000)}, resamples=999)
    places = (np.arange(600) + 0.5) / 600
    windows = [window(scores=norm.ppf(places[start::4]) + 0.27, name=str(start)) for start in range(4)]
    looks = judge(reference, windows, rule)
    assert [len(seen.windows) for seen in looks] == [1, 1, 1, 1, 4]
    assert [bool(seen.drifted) for seen in looks] == [False] * 4 + [True]


def test_a_level_below_the_smallest_p_value_is_refused():
    reference = Reference({}, {"pair_scores": np.arange(100.0)}, resamples=199)
    with pytest.raises(ClipDomainError, match="--horizon 2 or less"):
        judge(reference, [window(scores=np.arange(100.0))], Rule(0.05, 20, (1, 4)))
    with pytest.raises(ClipDomainError, match="--false_alarms 2"):
        Rule(2)
