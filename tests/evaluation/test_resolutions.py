"""A model at several picture sizes: true scores, a fair recommendation, and nothing claimed that is noise."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from hf_clip_domain.domains import load_domain
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation import EvaluationReport, RetrievalEvaluator
from hf_clip_domain.evaluation.embedded import measure_retrieval
from hf_clip_domain.evaluation.forgetting import mean_recall
from hf_clip_domain.evaluation.html_report import to_html
from hf_clip_domain.evaluation.plots import plot_resolutions
from hf_clip_domain.evaluation.resolution_table import AtSize, Resolutions, area
from hf_clip_domain.evaluation.resolutions import measure_resolutions
from hf_clip_domain.models.image_positions import at_image_size
from hf_clip_domain.models.image_sizes import parse_sizes, whole_patches


@pytest.fixture(scope="module")
def found(clip, rows):
    model, processor = clip()
    domain, pairs = load_domain("general"), rows(24)
    evaluator = RetrievalEvaluator(pairs, processor, domain=domain, progress=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = measure_resolutions(
        evaluator.embed(model), model, processor, domain, [48, 16, 32], batch_size=4, budget=100, replicates=50
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return found, (model, processor, domain, pairs)


def test_every_size_scores_what_an_evaluation_at_that_size_scores(found):
    resolutions, (model, processor, domain, pairs) = found
    assert [(one.size, one.tokens) for one in resolutions.sizes] == [(16, 2), (32, 5), (48, 10)]
    for one in resolutions.sizes:
        own, at_size = at_image_size(model, processor, one.size)
        embedded = RetrievalEvaluator(pairs, at_size, domain=domain, progress=False).embed(own)
        scores = measure_retrieval(embedded, 0).metrics
        assert one.mean_recall == pytest.approx(mean_recall(scores))
        assert one.metric == pytest.approx(scores["text_to_image/mrr"])
        assert one.milliseconds > 0 and one.pictures_per_second > 0 and one.peak_mib >= 0
        assert one.interval[0] <= one.mean_recall <= one.interval[1]
    assert resolutions.native == 32 and resolutions.metric == "text_to_image/mrr"


def test_a_generous_budget_takes_the_smallest_size(found):
    resolutions = found[0]
    assert resolutions.recommended == 16
    best = next(one for one in resolutions.sizes if one.size == resolutions.best)
    assert best.drop == 0 and all(one.drop >= 0 for one in resolutions.sizes) and best.drop_interval == [0, 0]


def test_the_report_carries_the_table_to_console_card_json_and_page(found, tmp_path):
    resolutions = found[0]
    scores = {"image_to_text/recall@1": 0.1, "text_to_image/recall@1": 0.1}
    EvaluationReport({}, scores, extra={"resolutions": resolutions.to_json()}).save(tmp_path)
    report = EvaluationReport.load(tmp_path)
    assert Resolutions.from_json(report.extra["resolutions"]) == resolutions
    table = report.table()
    assert max(map(len, resolutions.table().splitlines()[:6])) <= 100
    verdict = resolutions.verdict()
    assert all(verdict in text for text in (table, report.markdown(), to_html(report)))
    lines = [line for line in report.markdown().splitlines() if line.startswith("| 16 |")]
    assert len(lines) == 1 and lines[0].count("|") == 11
    assert to_html(report).count("<svg") == 2 + 3
    assert min(Image.open(plot_resolutions(resolutions, tmp_path / "sizes.png")).size) > 200


def at(size, recall, drop, drop_interval, speed=100.0):
    return AtSize(size, 4, recall, None, 0.1, drop, drop_interval, 1.0, speed, 10.0)


def made(sizes, best, recommended, budget=1.0):
    return Resolutions(sizes, 224, "text_to_image/mrr", best, recommended, budget, 0.9, 64, "cpu")


def test_the_verdict_claims_no_more_than_the_intervals():
    sizes = [at(112, 0.49, 1.0, [0.2, 3.2], 400.0), at(224, 0.5, 0.0, [0.0, 0.0])]
    text = made(sizes, best=224, recommended=112).verdict()
    assert "Serve at 112 pixels: 1.0 points" in text and "4.0 times" in text and "up to 3.2 points cannot be" in text
    sure = [replace(sizes[0], drop_interval=[0.2, 0.9]), sizes[1]]
    assert "cannot be excluded" not in made(sure, best=224, recommended=112).verdict()
    assert "Too few" in made([replace(sizes[0], drop_interval=None), sizes[1]], 224, 112).verdict()
    unsure = [at(112, 0.3, 20.0, [10.0, 30.0]), at(160, 0.45, 5.0, [-1.0, 9.0]), sizes[1]]
    text = made(unsure, best=224, recommended=224).verdict()
    assert "every smaller of these sizes loses more than 1 point " in text and "At 160 the loss may be chance." in text
    assert "smallest of these sizes is the best" in made(sizes[1:], 224, 224).verdict()


def test_the_area_is_the_share_kept_over_the_logarithm_of_the_size():
    assert area({64: 0.3, 128: 0.3, 256: 0.3}) == pytest.approx(1)
    assert area({64: 0.2, 256: 0.4}) == pytest.approx(0.75)
    assert area({100: 0.0, 200: 0.4, 400: 0.4}) == pytest.approx(0.75)  # equal steps of the logarithm weigh equally
    assert area({224: 0.4}) == 1 and math.isnan(area({64: 0.0, 128: 0.0}))


@pytest.mark.parametrize("value", ["160,112", "160, 112", "160 112", [160, 112], ["160,112"]])
def test_sizes_are_read_in_any_form(value):
    assert parse_sizes(value, "--resolutions") == [160, 112]


@pytest.mark.parametrize("value", ["", "small", "112;160", "0,112", "-16", [], "112.5"])
def test_what_is_no_size_is_refused_by_its_option(value):
    with pytest.raises(ClipDomainError, match="--resolutions"):
        parse_sizes(value, "--resolutions")


def test_sizes_that_cut_a_patch_are_rounded_and_said(clip, caplog, monkeypatch):
    said = []
    monkeypatch.setattr("hf_clip_domain.models.image_sizes.logger.warning", said.append)
    assert whole_patches(clip()[0], [5, 16, 24, 33, 47]) == [16, 32, 48]
    assert said[0] == "5 pixels cannot be cut into patches of 16: 16 is measured." and len(said) == 4
