"""Intervals: clusters, paired resamples, coverage on data whose truth is known, and the corrections."""

import numpy as np
import pytest
import torch

from hf_clip_domain.evaluation.bootstrap import (
    clusters,
    holm,
    interval,
    mean_replicates,
    median_replicates,
    p_value,
    resamples,
    statistic_replicates,
)
from hf_clip_domain.evaluation.embedded import EmbeddedPairs, measure_retrieval
from hf_clip_domain.evaluation.measurement import Measurement, joined
from hf_clip_domain.evaluation.report import EvaluationReport


def test_what_shares_anything_is_one_cluster():
    # Pictures 0 and 1 share caption 0; picture 2 has captions 1 and 2; pictures 1 and 3 are of one patient.
    pictures, captions, patients = clusters([([0, 1, 2, 2, 3], [0, 0, 1, 2, 3]), (range(4), [0, 1, 2, 1])], [4, 4, 3])
    assert pictures[0] == pictures[1] == pictures[3] != pictures[2]
    assert captions.tolist() == pictures[[0, 2, 2, 3]].tolist()
    assert len(set(patients)) == 2


def test_a_resample_is_whole_and_always_the_same():
    first, again = (list(resamples(20, 5)) for _ in range(2))
    assert all(weights.sum() == 20 for weights in first)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])


def test_replicates_are_those_of_a_plain_loop():
    draw = np.random.default_rng(0)
    cluster, values = draw.integers(5, 30, 80), draw.normal(size=80)
    names = np.unique(cluster)
    means, medians = [], []
    for weights in resamples(len(names), 50):
        rows = [
            value for name, times in zip(names, weights, strict=True) for value in values[cluster == name].repeat(times)
        ]
        means.append(np.mean(rows))
        medians.append(np.median(rows))
    assert mean_replicates({"x": values}, cluster, 50)["x"] == pytest.approx(means)
    assert median_replicates(values, cluster, 50) == pytest.approx(medians)
    general = statistic_replicates(lambda rows: {"x": float(values[rows].mean())}, cluster, 50)
    assert general["x"] == pytest.approx(means)


def test_duplicates_do_not_narrow_the_interval():
    draw = np.random.default_rng(1)
    values, cluster = draw.random(60), np.arange(60)
    low, high = interval(mean_replicates({"x": values}, cluster)["x"])
    ten_times = interval(mean_replicates({"x": values.repeat(10)}, cluster.repeat(10))["x"])
    assert ten_times == pytest.approx([low, high])
    as_if_independent = interval(mean_replicates({"x": values.repeat(10)}, np.arange(600))["x"])
    assert high - low > 2.5 * (as_if_independent[1] - as_if_independent[0])


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(2)
    held = 0
    for _ in range(120):
        # 80 clusters of 1 to 4 answers that are alike; the share of right ones is 0.3 in truth.
        cluster = np.repeat(np.arange(80), draw.integers(1, 5, 80))
        right = (draw.random(80) < 0.3).astype(float)[cluster]
        low, high = interval(mean_replicates({"x": right}, cluster, replicates=200)["x"])
        held += low <= 0.3 <= high
    assert 0.87 <= held / 120 <= 0.995


def test_too_few_clusters_give_no_interval():
    assert mean_replicates({"x": np.arange(90.0)}, np.arange(90) % 9) == {}
    assert median_replicates(np.arange(90.0), np.arange(90) % 9) is None


def embedded(noise, seed=0, rows=150):
    torch.manual_seed(seed)
    images = torch.randn(rows, 12)
    texts = images + noise * torch.randn(rows, 12)
    return EmbeddedPairs(
        embedder=type("Plain", (), {"similarity_function": staticmethod(lambda a, b: a @ b.T)}),
        pairs=[],
        rows=list(range(rows)),
        texts=[str(row) for row in range(rows)],
        positives=torch.arange(rows).repeat(2, 1).T,
        image_embeds=images,
        text_embeds=texts,
    )


def test_a_paired_difference_is_narrower_and_tells_real_from_not():
    worse, better = (measure_retrieval(embedded(noise)) for noise in (1.5, 1.2))
    report = EvaluationReport.compare(worse, better)
    key = "text_to_image/mrr"
    change, before, after = (report.intervals[side][key] for side in ("change", "before", "after"))
    assert before[0] < report.before[key] < before[1]
    assert change[0] < report.after[key] - report.before[key] < change[1]
    unpaired = np.hypot(before[1] - before[0], after[1] - after[0])
    assert change[1] - change[0] < 0.9 * unpaired
    assert report.is_real(key) and report.is_real("image_to_text/mean_rank")
    same = EvaluationReport.compare(worse, worse)
    assert same.is_real(key) is False and same.intervals["change"][key] == [0, 0]
    assert report.is_real("no/such") is None


def test_every_metric_of_retrieval_but_counts_has_an_interval_around_it():
    found = measure_retrieval(embedded(1.0))
    without = {name for name in found.metrics if name not in found.replicates}
    assert all("chance" in name or name.rpartition("/")[2] in ("candidates", "queries") for name in without)
    for name, values in found.replicates.items():
        low, high = interval(values)
        assert low <= found.metrics[name] <= high
    assert found.clusters == {"": 150}


def test_intervals_are_kept_and_shown(tmp_path):
    report = EvaluationReport.compare(measure_retrieval(embedded(1.5)), measure_retrieval(embedded(0.9)))
    assert EvaluationReport.load(report.save(tmp_path)) == report
    table = report.table()
    assert max(map(len, table.splitlines())) <= 100
    low, high = report.intervals["change"]["image_to_text/recall@1"]
    row = next(line for line in table.splitlines() if line.startswith("Recall@1 "))
    assert f"[{100 * low:+.1f},{100 * high:+.1f}]*" in row
    assert "of 150 independent clusters" in table and "excludes zero" in table
    markdown = report.markdown()
    assert f"({100 * low:+.1f} to {100 * high:+.1f})\\*" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    alone = EvaluationReport.compare(None, measure_retrieval(embedded(0.9)))
    assert "n/a" not in alone.table() and "[" in alone.table() and "change" not in alone.table()


def test_p_values_by_hand():
    assert p_value(np.ones(999)) == pytest.approx(2 / 1000)
    assert p_value(np.zeros(999)) == 1
    assert p_value(np.array([-1.0] + [1.0] * 98)) == pytest.approx(2 * 2 / 100)


def test_holms_step_down_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_parts_are_joined_under_their_names():
    parts = [Measurement({"a": 1.0}, {"a": np.ones(2)}, clusters={"": 3}).prefixed("x"), Measurement({"b": 2.0})]
    whole = joined(parts)
    assert whole.metrics == {"x/a": 1.0, "b": 2.0} and list(whole.replicates) == ["x/a"] and whole.clusters == {"x": 3}
