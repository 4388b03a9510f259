"""The probe, --wise_ft and `merge` from end to end, on real small runs of the real commands."""

import json
import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import CLIPModel

from hf_clip_domain.arguments import DataArguments
from hf_clip_domain.cli.forgetting import read_probe
from hf_clip_domain.cli.main import main
from hf_clip_domain.domains import load_domain
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.loading import load_model

SMOKE = ["--domain", "scientific", "--smoke", "--learning_rate", "1e-3", "--probe_rows", "32"]


def weights(folder):
    return load_model(str(folder))[0].state_dict()


def history(folder):
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "eval_text_to_image/mrr" in entry]


@pytest.mark.slow
def test_a_run_scores_the_probe_and_its_folder_can_be_merged(tmp_path, capsys):
    out, merged = tmp_path / "run", tmp_path / "merged"
    assert main(["train", *SMOKE, "--output_dir", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "general:" in printed and "Retained: " in printed
    report = json.loads((out / "evaluation.json").read_text())
    before, after = (report[side]["general/mean_recall@10"] for side in ("before", "after"))
    assert report["after"]["general/retained_recall@10"] == pytest.approx(after / before)
    assert report["after"]["general/lost_points"] == pytest.approx(100 * (before - after))
    assert 0 < history(out)[-1]["eval_general/mean_recall@10"] < 1
    assert "Retained: " in (out / "README.md").read_text()
    results = ModelCard.load(out / "README.md").data.eval_results
    named = {result.metric_type: result.dataset_name for result in results}
    assert named["general_text_to_image_recall@10"] != named["text_to_image_recall@10"]

    command = [sys.executable, "-m", "hf_clip_domain.cli.main", "merge", "starter", str(out)]
    command += ["--alphas", "0,0.5,1", "--forgetting_budget", "100", "--output", str(merged)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "chosen" in done.stdout and "general" in done.stdout
    names = {path.name for path in merged.iterdir()}
    assert {"model.safetensors", "README.md", "evaluation.json", "domain.yaml", "wise_ft.json"} <= names
    assert {"forgetting.png", "recall.png", "tokenizer.json", "run.yaml"} <= names and "training_curve.png" not in names
    curve = json.loads((merged / "wise_ft.json").read_text())
    assert [point["alpha"] for point in curve["points"]] == [0, 0.5, 1]
    best = max(curve["points"], key=lambda point: (point["target"], point["general"], -point["alpha"]))
    assert curve["alpha"] == best["alpha"]
    base, tuned, found = weights("starter"), weights(out), CLIPModel.from_pretrained(merged).state_dict()
    for name in base:
        torch.testing.assert_close(found[name], torch.lerp(base[name], tuned[name], curve["alpha"]), atol=1e-6, rtol=0)
    again = json.loads((merged / "evaluation.json").read_text())
    assert again["before"] == report["before"]
    unmerged = again["extra"]["wise_ft"]["tuned"]
    assert unmerged["text_to_image/mrr"] == pytest.approx(report["after"]["text_to_image/mrr"], abs=1e-6)
    assert ClipEmbedder.from_pretrained(merged).domain.name == "scientific"
    assert "Mean Recall@10 on the test splits" in (merged / "README.md").read_text()

    assert main(["merge", "starter", str(out), "--output", str(out)]) == 1
    assert "would replace it" in capsys.readouterr().err


@pytest.mark.slow
def test_training_that_ends_with_a_merge_saves_it_and_keeps_the_tuned_weights(tmp_path, capsys):
    plain, out = tmp_path / "plain", tmp_path / "run"
    assert main(["train", *SMOKE, "--probe_dataset", "none", "--output_dir", str(plain)]) == 0
    assert "general" not in capsys.readouterr().out.partition("Pairs:")[2]
    assert main(["train", *SMOKE, "--wise_ft", "true", "--forgetting_budget", "2", "--output_dir", str(out)]) == 0
    assert "chosen" in capsys.readouterr().out
    report = json.loads((out / "evaluation.json").read_text())
    choice = report["extra"]["wise_ft"]
    points = {point["alpha"]: point for point in choice["points"]}
    assert 100 * (points[0]["general"] - points[choice["alpha"]]["general"]) <= 2 + 1e-6
    allowed = [p["target"] for p in points.values() if 100 * (points[0]["general"] - p["general"]) <= 2]
    assert points[choice["alpha"]]["target"] == max(allowed)
    base, tuned, saved = weights("starter"), weights(out / "checkpoint-4"), weights(out)
    # Neither the probe nor the merge changed how the run went.
    assert all(torch.equal(tuned[name], value) for name, value in weights(plain).items())
    for name in base:
        torch.testing.assert_close(saved[name], torch.lerp(base[name], tuned[name], choice["alpha"]), atol=1e-6, rtol=0)
    card = (out / "README.md").read_text()
    assert "forgetting.png" in card and "remain in checkpoint-4" in card
    assert json.loads((out / "wise_ft.json").read_text())["alpha"] == choice["alpha"]


@pytest.mark.slow
def test_a_finished_run_resumes_with_its_tuned_weights_and_not_with_the_merged(tmp_path, monkeypatch):
    options = [*SMOKE, "--wise_ft", "true", "--forgetting_budget", "0", "--save_strategy", "steps", "--save_steps", "2"]
    options += ["--eval_strategy", "steps", "--eval_steps", "2", "--load_best_model_at_end", "false"]
    assert main(["train", *options, "--output_dir", str(tmp_path / "whole")]) == 0
    whole = tmp_path / "whole" / "wise_ft.json"
    first, saved = json.loads(whole.read_text()), weights(tmp_path / "whole")
    assert main(["train", *options, "--output_dir", str(tmp_path / "whole"), "--resume_from_checkpoint"]) == 0
    assert json.loads(whole.read_text()) == first
    assert all(torch.equal(value, saved[name]) for name, value in weights(tmp_path / "whole").items())


@pytest.mark.slow
def test_an_adapter_is_merged_with_the_plain_base(tmp_path, capsys):
    """The adapter's own files hold the tuned end of the line, the starter is the other, between them lies the model."""
    out = tmp_path / "run"
    options = ["--adapter", "lora", "--save_adapter", "both", "--wise_ft", "true", "--forgetting_budget", "100"]
    assert main(["train", *SMOKE, *options, "--learning_rate", "3e-3", "--output_dir", str(out)]) == 0
    choice = json.loads((out / "wise_ft.json").read_text())
    base, tuned, saved = weights("starter"), weights(out / "adapter"), CLIPModel.from_pretrained(out).state_dict()
    assert set(saved) == set(base) and any(not torch.equal(tuned[name], base[name]) for name in base)
    for name in base:
        torch.testing.assert_close(saved[name], torch.lerp(base[name], tuned[name], choice["alpha"]), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_soup_of_two_models_that_no_run_left(tmp_path, capsys):
    model, processor = load_model("starter")
    base = {name: value.clone() for name, value in model.state_dict().items()}
    for seed in (0, 1):
        torch.manual_seed(seed)
        model.load_state_dict({name: value + 0.01 * torch.randn_like(value) for name, value in base.items()})
        model.save_pretrained(tmp_path / str(seed))
        processor.save_pretrained(tmp_path / str(seed))
    command = ["merge", "starter", str(tmp_path / "0"), str(tmp_path / "1"), "--domain", "scientific", "--smoke"]
    command += ["--probe_rows", "16", "--alphas", "1", "--forgetting_budget", "100"]
    assert main([*command, "--soup", "uniform", "--output", str(tmp_path / "soup")]) == 0
    curve = json.loads((tmp_path / "soup" / "wise_ft.json").read_text())
    first, second, found = (weights(tmp_path / name) for name in ("0", "1", "soup"))
    for name, value in found.items():
        soup = (first[name] + second[name]) / 2
        torch.testing.assert_close(value, torch.lerp(base[name], soup, curve["alpha"]), atol=1e-6, rtol=0)
    assert main([*command, "--output", str(tmp_path / "greedy")]) == 0
    assert "Greedy soup of " in capsys.readouterr().out


def test_the_users_own_probe_is_limited_disjoint_and_always_the_same(tmp_path):
    draw_shades(tmp_path / "pairs", 120, "shade")
    data = DataArguments(probe_dataset=str(tmp_path / "pairs"), probe_rows=12)
    probe, again = (read_probe(data, load_domain("general"), 0, smoke=False) for _ in range(2))
    assert probe["validation"]["text"] == again["validation"]["text"]
    assert {name: len(rows) for name, rows in probe.items()} == {"validation": 12, "test": 12}
    assert not {text for (text,) in probe["validation"]["text"]} & {text for (text,) in probe["test"]["text"]}


def draw_shades(folder, count, word):
    folder.mkdir()
    for index in range(count):
        Image.new("RGB", (32, 32), (index * 2, 100, 50)).save(folder / f"{index}.png")
    rows = [json.dumps({"file_name": f"{index}.png", "text": f"{word} {index}"}) for index in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def test_samples_do_not_probe_a_run_that_trains_on_them():
    general, other = load_domain("general"), load_domain("medical")
    assert read_probe(DataArguments(), general, 0, smoke=True) is None
    assert len(read_probe(DataArguments(probe_rows=3), other, 0, smoke=True)["test"]) == 3
    with pytest.raises(ClipDomainError, match="--probe_rows 0"):
        DataArguments(probe_rows=0)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--probe_dataset", "none"], "name general pairs with --probe_dataset"),
        (["--loss_settings", "{similarity: dot}"], "compares by cosine and the tuned one by dot"),
        (["--forgetting_budget", "-1"], "--forgetting_budget -1.0: expected points"),
        (["--probe_domain", "genral"], "genral"),
        (["--adapter", "lora", "--save_adapter", "adapter"], "give merged or both"),
    ],
)
def test_a_merge_that_cannot_be_chosen_is_refused_before_training(tmp_path, capsys, options, message):
    command = ["train", *SMOKE, "--wise_ft", "true", "--output_dir", str(tmp_path / "out"), *options]
    assert main(command) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out" / "checkpoint-4").exists()


def test_merge_says_what_is_wrong_with_its_command(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["merge", "--output", str(tmp_path / "out"), "starter", "starter"])
    assert "the models come first" in capsys.readouterr().err
    assert main(["merge", "starter", "starter", "--alphas", "2", "--output", str(tmp_path / "out")]) == 1
    assert "--alphas 2" in capsys.readouterr().err
