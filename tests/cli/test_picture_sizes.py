"""Picture sizes and the page, by the commands: what is asked for is there, what is dear is asked for."""

import json

import pytest
from PIL import Image

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.cli.evaluation_sizes import AUTO_SHARE, add_picture_sizes, auto_cost
from hf_clip_domain.cli.main import main
from hf_clip_domain.domains import load_domain
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation import EvaluationReport, RetrievalEvaluator
from hf_clip_domain.models.loading import load_model


def write_pairs(folder, count=16):
    rows = []
    for index in range(count):
        Image.new("RGB", (40, 60), (index * 15, 90, 250 - index * 15)).save(folder / f"{index}.png")
        rows.append({"image": f"{index}.png", "text": f"<b>shade</b> {index}", "split": "test"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "pairs.jsonl"


def test_evaluate_scores_sizes_and_leaves_a_page(tmp_path, capsys, caplog):
    data, page, scores = write_pairs(tmp_path), tmp_path / "deeper" / "page.html", tmp_path / "scores.json"
    command = ["evaluate", "starter", "--dataset", str(data), "--batch_size", "4", "--resolutions", "60,128"]
    assert main([*command, "--accuracy_budget", "100", "--html", str(page), "--output", str(scores)]) == 0
    printed = capsys.readouterr().out
    assert "Serve at 64 pixels" in printed and f"{page}, for any browser" in printed
    assert "60 pixels cannot be cut into patches of 16: 64 is measured." in caplog.text
    stored = json.loads(scores.read_text())["extra"]
    assert [one["size"] for one in stored["resolutions"]["sizes"]] == [64, 128]
    assert stored["gallery"] and stored["resolutions"]["batch_size"] == 4
    html = page.read_text()
    assert (
        "&lt;b&gt;shade" in html and "<b>shade" not in html and html.count("data:image/jpeg") >= len(stored["gallery"])
    )
    assert str(tmp_path) not in html


@pytest.mark.parametrize(
    "arguments",
    [["--resolutions", "large"], ["--resolutions", "64", "--accuracy_budget", "-1"]],
    ids=["sizes", "budget"],
)
def test_a_mistake_costs_no_loading(arguments, capsys):
    assert main(["evaluate", "no/such/model", *arguments]) == 1
    assert arguments[-2] in capsys.readouterr().err


@pytest.mark.parametrize("option", [{"eval_resolutions": "12x"}, {"accuracy_budget": -0.5}])
def test_training_refuses_the_same(option, tmp_path):
    with pytest.raises(ClipDomainError, match=f"--{next(iter(option))}"):
        ClipTrainingArguments(str(tmp_path), use_cpu=True, **option)


def test_auto_measures_only_next_to_a_long_training(tmp_path):
    model, processor = load_model("starter")
    domain = load_domain("general")
    rows = [{"image": Image.new("RGB", (32, 32), (index * 20, 0, 0)), "text": f"shade {index}"} for index in range(12)]
    embedded = RetrievalEvaluator(rows, processor, domain=domain, progress=False).embed(model)

    def extra(steps, **settings):
        training = ClipTrainingArguments(str(tmp_path), per_device_train_batch_size=10, use_cpu=True, **settings)
        report = EvaluationReport({}, {})
        add_picture_sizes(report, training, steps, embedded, model, processor, domain)
        return report.extra

    enough = round(auto_cost(12) / AUTO_SHARE / 3 / 10) + 1
    assert [one["size"] for one in extra(enough)["resolutions"]["sizes"]] == [64, 96, 128]
    assert "--eval_resolutions 64,96,128" in extra(enough - 2)["skipped"]["resolutions"]
    assert "resolutions" not in extra(enough, feature_cache="auto")
    assert extra(enough, eval_resolutions="none") == {}
    positions = model.vision_model.embeddings.position_embedding
    model.vision_model.embeddings.position_embedding = None
    model.vision_model.embeddings.rotary_position = positions  # of a kind that cannot be interpolated
    assert "cannot be interpolated" in extra(enough)["skipped"]["resolutions"]
    del model.vision_model.embeddings.rotary_position
    model.vision_model.embeddings.position_embedding = positions
    assert [one["size"] for one in extra(1, eval_resolutions="128")["resolutions"]["sizes"]] == [128]
