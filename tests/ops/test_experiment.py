"""Tracked runs side by side: those on the same data, by what differed."""

import json
import re

import numpy as np
import pytest

from hf_clip_domain.cli.main import main
from hf_clip_domain.evaluation import EvaluationReport
from hf_clip_domain.ops.tracking import Tracker

METRIC, RETAINED = "text_to_image/recall@10", "general/retained_recall@10"


def track(folder, name, domain, settings, score, retained):
    """A run as `train` tells of it."""
    after = {METRIC: score} | ({RETAINED: retained} if retained is not None else {})
    ends = {"after": {METRIC: [score - 0.05, score + 0.05]}}
    with Tracker(folder / name, name, experiment="several") as tracker:
        tracker.settings({"training": {"output_dir": str(folder / name), "epochs": 3, **settings}})
        tracker.tags({"domain": domain, "dataset": f"{domain} pairs"})
        tracker.part("trial 0", {"loss": "siglip"}, {f"after/{METRIC}": 0.99})
        tracker.metrics({f"before/{METRIC}": 0.25} | {f"after/{key}": value for key, value in after.items()})
        report = EvaluationReport({METRIC: 0.25}, after, intervals=ends)
        tracker.artifacts([report.save(folder / name)])


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    track(folder, "low", "medical", {"learning_rate": 1e-5}, 0.5, 0.99)
    track(folder, "high", "medical", {"learning_rate": 1e-3}, 0.8, 0.7)
    track(folder, "poor", "medical", {"learning_rate": 1e-2}, 0.45, 0.6)
    track(folder, "<b>alone", "industrial", {"loss": "siglip"}, 0.6, None)
    with pytest.raises(ValueError), Tracker(folder / "failed", "failed", experiment="several") as tracker:
        tracker.metrics({f"after/{METRIC}": 1.0})
        raise ValueError
    return folder


def test_runs_are_compared_with_those_on_the_same_data(folder, capsys):
    json_file, page_file = folder / "runs.json", folder / "runs.html"
    assert main(["compare", "--experiment", "several", "--output", str(json_file), "--html", str(page_file)]) == 0
    industrial, medical = json.loads(json_file.read_text())["groups"]
    assert (industrial["domain"], medical["domain"]) == ("industrial", "medical")
    assert [run["name"] for run in medical["runs"]] == ["high", "low", "poor"]  # no trial, none that failed
    assert medical["differing"] == ["training.learning_rate"]
    names = {run["run_id"]: run["name"] for run in medical["runs"]}
    assert {names[one] for one in medical["pareto"]} == {"high", "low"}
    best = medical["runs"][0]
    assert best["base"] == 0.25 and np.allclose(best["interval"], [0.75, 0.85]) and best["retained"] == 0.7
    assert industrial["runs"][0]["retained"] is None and industrial["differing"] == industrial["pareto"] == []
    table = capsys.readouterr().out
    assert re.search(r"high +80.0 \[75.0, 85.0\] +70.0 retained +best, Pareto\n +training.learning_rate=0.001", table)
    page = page_file.read_text()
    assert page.count("<svg") == 1 and "<b>alone" not in page and "&lt;b&gt;alone" in page
    assert page.count('class="chosen"') == 1 and "training.learning_rate" in page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--experiment", "nowhere"], "has none of that name"),
        (["--experiment", "several", "--metric", "speed"], "text_to_image/recall_at_10"),
        (["--experiment", "several", "--metric", "text_to_image/mean_rank"], "of which more is better"),
        (["--experiment", "several", "starter"], "leave out models"),
        (["starter"], "--datasets"),
    ],
)
def test_what_cannot_be_compared_says_why(folder, arguments, told, capsys):
    assert main(["compare", *arguments]) == 1
    assert told in capsys.readouterr().err
