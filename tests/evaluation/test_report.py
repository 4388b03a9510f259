import json
import math
import re

import pytest

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.report import EvaluationReport


def metrics(recall):
    values = {"candidates": 250.0}
    for direction, shift, candidates in (("image_to_text", 0.0, 1204.0), ("text_to_image", 0.013, 250.0)):
        for k, gain in ((1, 0.0), (5, 0.2), (10, 0.3)):
            values[f"{direction}/recall@{k}"] = recall + gain + shift
            values[f"{direction}/chance_recall@{k}"] = k / candidates
        values[f"{direction}/mean_rank"] = 12.25
        values[f"{direction}/median_rank"] = 3.0
        values[f"{direction}/mrr"] = recall + 0.1
        values[f"{direction}/candidates"] = candidates
        values[f"{direction}/queries"] = 250.0
    return values


def prefixed(name, values):
    return {f"{name}/{key}": value for key, value in values.items()}


def test_saved_and_loaded_is_equal(tmp_path):
    report = EvaluationReport(metrics(1 / 3), metrics(2 / 3), dataset="数据", model="me/model", extra={"seed": 0})
    path = report.save(tmp_path / "deeper" / "report.json")
    assert EvaluationReport.load(path) == report
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]  # nothing temporary is left


def test_a_folder_gets_evaluation_json(tmp_path):
    report = EvaluationReport(metrics(0.1), metrics(0.4))
    assert report.save(tmp_path) == tmp_path / "evaluation.json"
    assert EvaluationReport.load(tmp_path) == report
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored["before"]["image_to_text/recall@1"] == 0.1 and "candidates" in stored["after"]


def test_json_holds_no_nan(tmp_path):
    report = EvaluationReport({"loss": math.nan}, {"loss": math.inf}, extra={"deep": [math.nan, 1.0]})
    text = report.save(tmp_path).read_text()
    assert "NaN" not in text and "Infinity" not in text
    loaded = EvaluationReport.load(tmp_path)
    assert math.isnan(loaded.before["loss"]) and loaded.extra == {"deep": [None, 1.0]}


def test_a_failed_save_keeps_the_old_report(tmp_path):
    EvaluationReport(metrics(0.1), metrics(0.4)).save(tmp_path)
    old = (tmp_path / "evaluation.json").read_text()
    with pytest.raises(TypeError):
        EvaluationReport({}, {}, extra={"bad": object()}).save(tmp_path)
    assert (tmp_path / "evaluation.json").read_text() == old


@pytest.mark.parametrize("content", [None, "{", "[]", '{"before": {}}', '{"before": {}, "after": 3}'])
def test_what_is_no_report_is_told(tmp_path, content):
    path = tmp_path / "evaluation.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ClipDomainError, match="evaluation.json"):
        EvaluationReport.load(path)


def test_the_table_shows_before_after_and_change_both_ways():
    table = EvaluationReport(metrics(0.1), metrics(0.45)).table()
    assert max(map(len, table.splitlines())) <= 100
    row = next(line for line in table.splitlines() if line.startswith("Recall@1 "))
    assert re.findall(r"[+-]?\d+\.\d", row) == ["10.0", "45.0", "+35.0", "11.3", "46.3", "+35.0"]
    assert re.search(r"MRR .*0\.200 +0\.550 +\+0\.350", table)
    assert "1,204 texts for an image, 250 images for a text" in table
    assert "image -> text 0.1 / 0.4 / 0.8, text -> image 0.4 / 2.0 / 4.0" in table


def test_the_table_names_further_groups_after_the_main_one():
    before, after = metrics(0.1), metrics(0.3)
    report = EvaluationReport(before | prefixed("general", before), after | prefixed("general", after))
    assert report.groups() == ["", "general"]
    assert report.table().count("Recall@1 ") == 2 + 2  # a row and a chance line each
    assert report.table().index("general:") > report.table().index("MRR")


def test_a_missing_metric_is_not_invented():
    before = metrics(0.1)
    del before["image_to_text/mrr"]
    assert re.search(r"MRR +n/a +0\.400 +n/a", EvaluationReport(before, metrics(0.3)).table())


def test_markdown_is_a_table():
    lines = EvaluationReport(metrics(0.1), metrics(0.45)).markdown().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 8 and {row.count("|") for row in rows} == {8}
    assert "| Recall@1 (%) | 10.0 | 45.0 | +35.0 | 11.3 | 46.3 | +35.0 |" in rows
    assert "Chance" in lines[-1]


def test_metrics_for_a_model_card():
    after = metrics(0.4) | {"image_to_text/mrr": math.nan}
    found = EvaluationReport(metrics(0.1), after).model_index_metrics()
    assert len(found) == 11  # twelve less the one that is not finite
    assert ("image_to_text_recall@1", "Image to text Recall@1", 0.4) in found


def test_an_empty_report_renders():
    assert EvaluationReport({}, {}).table() == EvaluationReport({}, {}).markdown() == ""
