"""The probe, --wise_ft and `merge` from end to end, on real small runs of the real commands."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from huggingface_hub import ModelCard
from small_clip import draw_shades
from transformers import CLIPModel

from hf_clip_domain.arguments import DataArguments
from hf_clip_domain.cli.forgetting import read_probe
from hf_clip_domain.cli.main import main
from hf_clip_domain.domains import load_domain
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.image_positions import at_image_size
from hf_clip_domain.models.loading import load_model

DATA = ["--domain", "scientific", "--precision", "fp32"]
CHECKPOINT = "checkpoint-3"


def weights(folder):
    return load_model(str(folder))[0].state_dict()


def history(folder):
    state = json.loads((folder / CHECKPOINT / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "eval_text_to_image/mrr" in entry]


def assert_between(found, base, tuned, alpha):
    for name in base:
        torch.testing.assert_close(found[name], torch.lerp(base[name], tuned[name], alpha), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, train):
    """A run as it goes without any of this."""
    out = tmp_path_factory.mktemp("plain") / "run"
    assert train(out, "--probe_dataset", "none") == 0
    assert not any(key.startswith("general/") for key in json.loads((out / "evaluation.json").read_text())["after"])
    return out


@pytest.mark.slow
def test_training_that_ends_with_a_merge_saves_it_and_keeps_the_tuned_weights(tmp_path, capsys, train, base, plain):
    out, budget = tmp_path / "run", 10
    options = ["--wise_ft", "true", "--forgetting_budget", str(budget)]
    assert train(out, *options) == 0
    printed = capsys.readouterr().out
    assert "general:" in printed and "Retained: " in printed and "chosen" in printed

    report = json.loads((out / "evaluation.json").read_text())
    before, after = (report[side]["general/mean_recall@10"] for side in ("before", "after"))
    assert report["after"]["general/retained_recall@10"] == pytest.approx(after / before)
    assert report["after"]["general/lost_points"] == pytest.approx(100 * (before - after))
    assert 0 < history(out)[-1]["eval_general/mean_recall@10"] <= 1

    choice = report["extra"]["wise_ft"]
    points = {point["alpha"]: point for point in choice["points"]}
    allowed = [p["target"] for p in points.values() if 100 * (points[0]["general"] - p["general"]) <= budget + 1e-6]
    assert points[choice["alpha"]]["target"] == max(allowed)
    tuned, saved = weights(out / CHECKPOINT), weights(out)
    # Neither the probe nor the merge changed how the run went.
    assert all(torch.equal(tuned[name], value) for name, value in weights(plain).items())
    assert_between(saved, weights(base), tuned, choice["alpha"])

    card = (out / "README.md").read_text()
    assert "Retained: " in card and "forgetting.png" in card and f"remain in {CHECKPOINT}" in card
    results = ModelCard.load(out / "README.md").data.eval_results
    named = {result.metric_type: result.dataset_name for result in results}
    assert named["general_text_to_image_recall@10"] != named["text_to_image_recall@10"]

    # A finished run resumes with its tuned weights and not with the merged ones.
    assert train(out, *options, "--resume_from_checkpoint") == 0
    assert json.loads((out / "wise_ft.json").read_text())["points"] == choice["points"]
    assert all(torch.equal(value, saved[name]) for name, value in weights(out).items())


@pytest.mark.slow
def test_a_finished_run_can_be_merged(tmp_path, capsys, base, plain, sources):
    merged = tmp_path / "merged"
    command = ["merge", base, str(plain), *sources]
    command += ["--alphas", "0,0.5,1", "--forgetting_budget", "100", "--output", str(merged)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "chosen" in printed and "general" in printed
    names = {path.name for path in merged.iterdir()}
    assert {"model.safetensors", "README.md", "evaluation.json", "domain.yaml", "wise_ft.json"} <= names
    assert {"forgetting.png", "recall.png", "tokenizer.json", "run.yaml"} <= names and "training_curve.png" not in names
    curve = json.loads((merged / "wise_ft.json").read_text())
    assert [point["alpha"] for point in curve["points"]] == [0, 0.5, 1]
    best = max(curve["points"], key=lambda point: (point["target"], point["general"], -point["alpha"]))
    assert curve["alpha"] == best["alpha"]
    assert_between(CLIPModel.from_pretrained(merged).state_dict(), weights(base), weights(plain), curve["alpha"])
    own, again = (json.loads((folder / "evaluation.json").read_text()) for folder in (plain, merged))
    assert own["before"].items() <= again["before"].items()
    unmerged = again["extra"]["wise_ft"]["tuned"]
    assert unmerged["text_to_image/mrr"] == pytest.approx(own["after"]["text_to_image/mrr"], abs=1e-6)
    assert ClipEmbedder.from_pretrained(merged).domain.name == "scientific"
    assert "Mean Recall@10 on the test splits" in (merged / "README.md").read_text()

    assert main(["merge", base, str(plain), "--output", str(plain)]) == 1
    assert "would replace it" in capsys.readouterr().err


EVERY_RANK = textwrap.dedent(
    """
    import json, os, sys
    from pathlib import Path
    from hf_clip_domain.cli.forgetting import RunScores
    from hf_clip_domain.cli.main import main

    plain = RunScores.choose_merge

    def told(self, model, *ends, **settings):
        found = plain(self, model, *ends, **settings)
        weights = sum(value.double().abs().sum().item() for value in model.state_dict().values())
        rank = os.environ["RANK"]
        (Path(sys.argv[1]) / f"rank{rank}.json").write_text(json.dumps([found.to_json(), weights]))
        return found

    RunScores.choose_merge = told
    sys.exit(main(sys.argv[2:]))
    """
)


@pytest.mark.slow
def test_two_processes_choose_the_same_merge_and_one_saves_it(tmp_path, base, quick):
    """What each process chose is written down beside the run; the choice itself is the command's own."""
    out, program = tmp_path / "run", tmp_path / "program.py"
    program.write_text(EVERY_RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    command += [str(program), str(tmp_path), "train", *quick]
    command += ["--use_cpu", "--wise_ft", "true", "--forgetting_budget", "10", "--output_dir", str(out)]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=700, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second and first[0]["points"] == json.loads((out / "wise_ft.json").read_text())["points"]
    assert_between(weights(out), weights(base), weights(out / CHECKPOINT), first[0]["alpha"])
    assert finished.stdout.count("chosen") == 1


@pytest.mark.slow
def test_an_adapter_is_merged_with_the_plain_base(tmp_path, train, base):
    """The adapter's own files hold the tuned end of the line, the base is the other, between them lies the model."""
    out = tmp_path / "run"
    options = ["--adapter", "lora", "--save_adapter", "both", "--wise_ft", "true", "--forgetting_budget", "100"]
    assert train(out, *options, "--learning_rate", "1e-2") == 0
    first, tuned, saved = weights(base), weights(out / "adapter"), CLIPModel.from_pretrained(out).state_dict()
    assert set(saved) == set(first) and any(not torch.equal(tuned[name], first[name]) for name in first)
    curve = json.loads((out / "wise_ft.json").read_text())
    assert len(curve["points"]) == 5  # a budget that none exceeds leaves nothing to search
    assert_between(saved, first, tuned, curve["alpha"])


@pytest.mark.slow
def test_a_soup_of_two_models_that_no_run_left(tmp_path, capsys, base, sources):
    model, processor = load_model(base)
    origin = {name: value.clone() for name, value in model.state_dict().items()}
    for seed in (0, 1):
        torch.manual_seed(seed)
        model.load_state_dict({name: value + 0.01 * torch.randn_like(value) for name, value in origin.items()})
        model.save_pretrained(tmp_path / str(seed))
        processor.save_pretrained(tmp_path / str(seed))
    command = ["merge", base, str(tmp_path / "0"), str(tmp_path / "1"), *DATA, *sources]
    command += ["--alphas", "1", "--forgetting_budget", "100"]
    assert main([*command, "--soup", "uniform", "--output", str(tmp_path / "soup")]) == 0
    curve = json.loads((tmp_path / "soup" / "wise_ft.json").read_text())
    first, second, found = (weights(tmp_path / name) for name in ("0", "1", "soup"))
    assert_between(found, origin, {name: (first[name] + second[name]) / 2 for name in origin}, curve["alpha"])
    assert main([*command, "--output", str(tmp_path / "greedy")]) == 0
    assert "Greedy soup of " in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_of_another_picture_size_is_merged_with_its_base_at_that_size(tmp_path, base, sources):
    first = at_image_size(*load_model(base), 48)
    tuned = tmp_path / "tuned"
    first[0].save_pretrained(tuned), first[1].save_pretrained(tuned)
    start, moved = weights(tuned), load_model(str(tuned))[0]
    torch.manual_seed(0)
    moved.load_state_dict({name: value + 0.01 * torch.randn_like(value) for name, value in start.items()})
    moved.save_pretrained(tuned)
    command = ["merge", base, str(tuned), *DATA, *sources, "--alphas", "1", "--forgetting_budget", "100"]
    assert main([*command, "--output", str(tmp_path / "merged")]) == 0
    alpha = json.loads((tmp_path / "merged" / "wise_ft.json").read_text())["alpha"]
    merged = CLIPModel.from_pretrained(tmp_path / "merged")
    assert merged.config.vision_config.image_size == 48
    assert_between(merged.state_dict(), start, weights(tuned), alpha)


def test_the_users_own_probe_is_limited_disjoint_and_always_the_same(tmp_path):
    draw_shades(tmp_path / "pairs", [None] * 120, "shade")
    data = DataArguments(probe_dataset=str(tmp_path / "pairs"), probe_rows=12)
    probe, again = (read_probe(data, load_domain("general"), 0, smoke=False) for _ in range(2))
    assert probe["validation"]["text"] == again["validation"]["text"]
    assert {name: len(rows) for name, rows in probe.items()} == {"validation": 12, "test": 12}
    assert not {text for (text,) in probe["validation"]["text"]} & {text for (text,) in probe["test"]["text"]}


def test_a_probe_with_splits_is_judged_by_its_last(tmp_path):
    draw_shades(tmp_path / "pairs", ["train"] * 12 + ["test"] * 8, "shade")
    probe = read_probe(DataArguments(probe_dataset=str(tmp_path / "pairs")), load_domain("general"), 0, smoke=False)
    numbers = {name: {int(text.split()[1]) for (text,) in rows["text"]} for name, rows in probe.items()}
    assert numbers == {"validation": set(range(12)), "test": set(range(12, 20))}


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
def test_a_merge_that_cannot_be_chosen_is_refused_before_training(tmp_path, capsys, train, options, message):
    assert train(tmp_path / "out", "--wise_ft", "true", *options) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out" / CHECKPOINT).exists()


def test_merge_says_what_is_wrong_with_its_command(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["merge", "--output", str(tmp_path / "out"), "starter", "starter"])
    assert "the models come first" in capsys.readouterr().err
    assert main(["merge", "starter", "starter", "--alphas", "2", "--output", str(tmp_path / "out")]) == 1
    assert "--alphas 2" in capsys.readouterr().err
