"""The main job from end to end, on real small runs of the real command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from hf_clip_domain.cli.main import main
from hf_clip_domain.embedder import ClipEmbedder

RECIPE = Path(__file__).parents[2] / "recipes" / "finetune.py"
FILES = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "processor_config.json",
    "README.md",
    "evaluation.json",
    "training_curve.png",
    "recall.png",
    "retrieval_sample.png",
    "run.yaml",
    "domain.yaml",
    "run.html",
    "report.html",
}
QUICK = ["--max_steps", "6", "--per_device_train_batch_size", "8", "--save_steps", "2", "--eval_steps", "2"]
QUICK += ["--save_strategy", "steps", "--eval_strategy", "steps", "--logging_steps", "1"]
QUICK += ["--dataloader_num_workers", "0", "--probe_dataset", "none"]  # the embedded default has a probe


def write_pairs(folder, count=40):
    """Coloured squares and discs with their names, one caption or two, and one file that is missing."""
    colours = {"red": (210, 40, 40), "blue": (40, 60, 210), "green": (40, 160, 60), "yellow": (230, 210, 40)}
    rows = []
    for index in range(count):
        name = list(colours)[index % 4]
        Image.new("RGB", (64 + index, 48), colours[name]).save(folder / f"{index}.png")
        texts = [f"a {name} board, number {index}"] + ([f"board {index} painted {name}"] if index % 2 else [])
        rows.append({"image": f"{index}.png", "text": texts, "label": name})
    rows.append({"image": "missing.png", "text": "nothing"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "pairs.jsonl"


def test_the_embedded_default_leaves_a_whole_folder(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--domain", "scientific", "--smoke", "--output_dir", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "embedded synthetic samples" in printed and "--dataset path/or/hub-id" in printed
    assert "Recall@10" in printed and "Chance" in printed and "Candidates" in printed and "general:" in printed
    assert f"{out / 'report.html'}, for any browser" in printed
    assert "resolutions: next to so short a training" in printed and "--eval_resolutions 64,96,128" in printed
    assert FILES <= {path.name for path in out.iterdir()}
    assert not (out / "quarantine.jsonl").exists()
    report = json.loads((out / "evaluation.json").read_text())
    for direction in ("image_to_text", "text_to_image"):
        for metric in ("recall@1", "recall@5", "recall@10", "mean_rank", "median_rank", "mrr"):
            assert f"{direction}/{metric}" in report["before"] and f"{direction}/{metric}" in report["after"]
    assert report["before"]["candidates"] == 64
    assert report["before"] != report["after"]

    model, processor = CLIPModel.from_pretrained(out), CLIPProcessor.from_pretrained(out)
    inputs = processor(text=["a plot"], images=Image.new("RGB", (50, 50)), return_tensors="pt", padding=True)
    assert torch.isfinite(model(**inputs).logits_per_image).all()
    assert ClipEmbedder.from_pretrained(out).domain.name == "scientific"
    card = ModelCard.load(out / "README.md")
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert report["after"]["text_to_image/recall@10"] in values.values()
    for picture in ("training_curve.png", "recall.png", "retrieval_sample.png"):
        assert min(Image.open(out / picture).size) > 200
        assert picture in card.content


def test_own_data_own_domain_own_loss(tmp_path, capsys, monkeypatch):
    dataset = write_pairs(tmp_path)
    (tmp_path / "boards.yaml").write_text("name: boards\nextends: industrial\nprompts: ['a {} board']\n")
    (tmp_path / "half_loss.py").write_text(
        "from hf_clip_domain.losses import InfoNCE\n"
        "from hf_clip_domain.types import LossOutput\n"
        "class Half(InfoNCE):\n"
        "    def forward(self, *args, **kwargs):\n"
        "        output = super().forward(*args, **kwargs)\n"
        "        return LossOutput(output.loss / 2, {'mine': output.loss.detach()})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "run"
    arguments = [
        "--domain",
        str(tmp_path / "boards.yaml"),
        "--dataset",
        str(dataset),
        "--model_name_or_path",
        "starter",
    ]
    arguments += ["--loss", "half_loss:Half", "--output_dir", str(out), "--test_fraction", "0.3", *QUICK]
    arguments += ["--eval_resolutions", "64,128", "--accuracy_budget", "100"]
    assert main(["train", *arguments]) == 0
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 1
    state = json.loads((out / "checkpoint-6" / "trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "mine" in entry]
    assert logged and all(entry["mine"] == pytest.approx(2 * entry["loss"], rel=1e-3) for entry in logged)
    assert yaml.safe_load((out / "domain.yaml").read_text())["name"]
    card = (out / "README.md").read_text()
    assert str(tmp_path) not in card and "boards" in card
    sizes = json.loads((out / "evaluation.json").read_text())["extra"]["resolutions"]
    assert [one["size"] for one in sizes["sizes"]] == [64, 128] and sizes["recommended"] == 64
    assert "Serve at 64 pixels" in card and "resolutions.png" in card and "report.html" in card
    assert "Serve at 64 pixels" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "a red board" in page and "data:image/jpeg" in page and str(tmp_path) not in page


def test_a_stream_of_pairs_with_long_captions(tmp_path):
    dataset, out = write_pairs(tmp_path, 80), tmp_path / "run"
    arguments = ["--dataset", str(dataset), "--model_name_or_path", "starter", "--streaming", "--max_text_length", "96"]
    arguments += ["--output_dir", str(out), "--captions", "sentence", "--test_fraction", "0.3", *QUICK]
    assert main(["train", *arguments, "--validation_fraction", "0.2"]) == 0
    assert CLIPModel.from_pretrained(out).config.text_config.max_position_embeddings == 96
    assert CLIPProcessor.from_pretrained(out).tokenizer.model_max_length == 96


def test_a_stream_without_max_steps_says_so(tmp_path, capsys):
    arguments = ["--dataset", str(write_pairs(tmp_path)), "--model_name_or_path", "starter", "--streaming"]
    assert main(["train", *arguments, "--output_dir", str(tmp_path / "run")]) == 1
    assert "--max_steps" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_command_resumes_to_the_same_weights(tmp_path):
    """The whole command is killed with SIGKILL in the middle and started again with --resume_from_checkpoint."""
    dataset = write_pairs(tmp_path)

    def command(name, *more):
        # What `auto` measures may differ between two runs on a busy machine; these two are to be the same.
        arguments = ["--dataset", str(dataset), "--model_name_or_path", "starter", "--domain", "industrial", *QUICK]
        arguments += ["--precision", "fp32", "--micro_batch_size", "8", "--test_fraction", "0.3"]
        return [sys.executable, str(RECIPE), *arguments, "--output_dir", str(tmp_path / name), *more]

    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command("whole"), env=environment, check=True, capture_output=True)
    cut = subprocess.Popen(command("cut"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not (tmp_path / "cut" / "checkpoint-2" / "checksums.json").exists():
        assert time.monotonic() < deadline and cut.poll() is None
        time.sleep(0.02)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    assert not (tmp_path / "cut" / "README.md").exists()
    resumed = subprocess.run(
        command("cut", "--resume_from_checkpoint"), env=environment, check=True, capture_output=True, text=True
    )
    assert "Resuming from" in resumed.stderr
    one, other = (CLIPModel.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    scores = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("whole", "cut")]
    assert scores[0]["before"] == scores[1]["before"] and scores[0]["after"] == scores[1]["after"]


@pytest.mark.slow
def test_a_composed_loss_trains_is_repeated_by_its_configuration_and_leaves_a_plain_model(tmp_path, capfd):
    data, out = write_pairs(tmp_path, 96), tmp_path / "out"
    rows = [json.loads(line) for line in data.read_text().splitlines()[:-1]]
    splits = ("train", "train", "validation", "test")
    rows = [{**row, "split": splits[index // 4 % 4]} for index, row in enumerate(rows)]
    data.write_text("\n".join(map(json.dumps, rows)))
    settings = "{similarity: bilinear, positives: {caption: 1, label: 0.2, image: 1}, negatives: {kind: weighted}}"
    command = ["train", "--dataset", str(data), "--model_name_or_path", "starter", *QUICK, "--output_dir", str(out)]
    assert main([*command, "--loss", "siglip", "--loss_settings", settings, "--learning_rate", "1e-2"]) == 0
    assert "calibration error" in capfd.readouterr().out
    assert json.loads((out / "similarity.json").read_text()) == {"name": "bilinear"}
    embedder = ClipEmbedder.from_pretrained(out)
    image, text = torch.randn(2, 192), torch.randn(3, 192)
    assert not torch.allclose(embedder.similarity(image, text), image @ text.T)  # the learned weights are in use
    assert embedder.logit_scale == json.loads((out / "calibration.json").read_text())["logit_scale"]
    _, report = CLIPModel.from_pretrained(out, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]
    assert "Zhai et al. 2023" in (out / "README.md").read_text()
    kept = yaml.safe_load((out / "run.yaml").read_text())
    assert kept["loss"] == "siglip" and kept["loss_settings"] == yaml.safe_load(settings)
    scores = json.loads((out / "evaluation.json").read_text())
    assert (
        main(
            ["evaluate", str(out), "--domain", "general", "--dataset", str(data), "--output", str(tmp_path / "e.json")]
        )
        == 0
    )
    again = json.loads((tmp_path / "e.json").read_text())["after"]
    for key in ("text_to_image/mrr", "image_to_text/map_by_label"):
        assert again[key] == pytest.approx(scores["after"][key], abs=1e-6)


def test_labels_asked_for_and_not_there_are_an_error_with_the_way_out(tmp_path, capsys):
    for index in range(20):
        Image.new("RGB", (32, 32), (index * 10, 0, 0)).save(tmp_path / f"{index}.png")
    rows = [json.dumps({"image": f"{index}.png", "text": f"shade {index}"}) for index in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    command = ["train", "--dataset", str(tmp_path / "pairs.jsonl"), "--model_name_or_path", "starter"]
    command += ["--loss_settings", "{positives: {label: 0.5}}", "--output_dir", str(tmp_path / "out"), *QUICK]
    assert main(command) == 1
    assert "no row has a label: name its column with --label_column" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_read_one_stream_of_captions_of_many_lengths(tmp_path):
    for index in range(40):
        Image.new("RGB", (32, 32), (index * 6, 100, 50)).save(tmp_path / f"{index}.png")
    texts = [f"a shade {'very ' * (index % 20)}dark, number {index}" for index in range(40)]
    splits = ["train"] * 32 + ["test"] * 8
    rows = [{"image": f"{index}.png", "text": text, "split": splits[index]} for index, text in enumerate(texts)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29731", str(RECIPE)]
    command += ["--dataset", str(tmp_path / "pairs.jsonl"), "--model_name_or_path", "starter", "--streaming", "true"]
    command += ["--max_steps", "3", "--per_device_train_batch_size", "5", "--dataloader_num_workers", "0"]
    command += ["--save_strategy", "no", "--eval_strategy", "no", "--output_dir", str(tmp_path / "out")]
    command += ["--probe_dataset", "none"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, timeout=700, env=environment)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stdout.count("Saved to") == 1 and (tmp_path / "out" / "model.safetensors").exists()
