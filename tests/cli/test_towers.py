"""What `--model_name_or_path towers` means for a run, replay of general pairs, and a run of a small model of towers."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image

from hf_clip_domain.arguments import DataArguments
from hf_clip_domain.cli.assembly import with_replay
from hf_clip_domain.cli.main import main
from hf_clip_domain.cli.options import parse_options
from hf_clip_domain.data.checking import FEATURES
from hf_clip_domain.domains import load_domain
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.models.merging import merge_weights

# The small model is that of the model's own tests.
_SPEC = importlib.util.spec_from_file_location(
    "towers_conftest", Path(__file__).parents[1] / "models" / "towers" / "conftest.py"
)
small = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(small)
TOWERS = ["--domain", "medical", "--dataset", "x", "--model_name_or_path", "towers"]


def test_of_the_towers_the_heads_alone_train_by_default():
    options = parse_options(TOWERS)
    assert options.adaptation.freeze == ["vision", "text"] and options.training.feature_cache == "auto"
    assert options.training.learning_rate == load_domain("medical").training_towers["learning_rate"]
    assert options.training.precision_choice.name == "fp32" and options.training.eval_steps == 0.2
    streaming = parse_options([*TOWERS, "--streaming", "true", "--max_steps", "5"])
    assert streaming.adaptation.freeze == ["vision", "text"] and streaming.training.feature_cache is None


@pytest.mark.parametrize(
    "words", [["--freeze", "nothing"], ["--freeze", "text:3"], ["--adapter", "lora", "--lora_towers", "text"]]
)
def test_towers_that_train_take_the_small_steps_of_a_pretrained_model(words):
    options, domain = parse_options([*TOWERS, *words]), load_domain("medical")
    assert options.training.learning_rate <= 4 * domain.training["learning_rate"] < 1e-3
    assert options.training.feature_cache is None


@pytest.mark.parametrize("words", [[], ["--feature_cache", "off", "--freeze", "nothing"], ["--adapter", "lora"]])
def test_the_resolved_options_of_towers_give_the_same_run(words, tmp_path):
    first = parse_options([*TOWERS, *words])
    (tmp_path / "run.yaml").write_text(first.to_yaml())
    again = parse_options(["--config", str(tmp_path / "run.yaml")])
    assert again.to_yaml() == first.to_yaml() and again.adaptation == first.adaptation
    assert again.training.feature_cache == first.training.feature_cache


def rows_of(folder, count, word):
    folder.mkdir()
    lines = []
    for number in range(count):
        Image.new("RGB", (16, 16), (number, 90, 200)).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"{word} {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_replayed_pairs_join_the_training_split_and_no_other(tmp_path):
    own = {"image": {"path": "a.png"}, "text": ["own"], "label": None, "group": None}
    pairs = DatasetDict({name: Dataset.from_list([own] * 3, features=FEATURES) for name in ("train", "validation")})
    general = str(rows_of(tmp_path / "general", 8, "general"))

    def texts(data):
        return [row["text"][0].split()[0] for row in with_replay(pairs, data, 0)["train"]]

    assert texts(DataArguments(replay_dataset=general)) == ["own"] * 3 + ["general"] * 3
    assert texts(DataArguments(replay_dataset=general, replay_rows=20)) == ["own"] * 3 + ["general"] * 8
    assert texts(DataArguments()) == ["own"] * 3
    assert len(with_replay(pairs, DataArguments(replay_dataset=general), 0)["validation"]) == 3


def test_replay_that_cannot_be_is_refused():
    with pytest.raises(ClipDomainError, match="--replay_rows 5.*--replay_dataset, which is not given"):
        DataArguments(replay_rows=5)
    with pytest.raises(ClipDomainError, match="--replay_rows 0: expected 1 or more"):
        DataArguments(replay_dataset="x", replay_rows=0)
    with pytest.raises(ClipDomainError, match="--replay_dataset with --streaming"):
        DataArguments(replay_dataset="x", streaming=True)


@pytest.mark.slow
def test_a_run_on_towers_ends_in_a_folder_that_says_how_to_load_it(tmp_path, capsys):
    base, out = tmp_path / "base", tmp_path / "run"
    small.make_towers().save_pretrained(base)
    small.make_processor().save_pretrained(base)
    arguments = ["--domain", "scientific", "--smoke", "--model_name_or_path", str(base), "--output_dir", str(out)]
    arguments += ["--freeze", "vision", "text", "--feature_cache", str(tmp_path / "kept"), "--learning_rate", "1e-2"]
    assert main(["train", *arguments, "--probe_dataset", "none", "--precision", "fp32"]) == 0
    told = capsys.readouterr().out
    assert f"load_model({str(out)!r})" in told and "CLIPModel" not in told
    card = (out / "README.md").read_text()
    assert "import hf_clip_domain.models.towers" in card and "CLIPModel" not in card and "CLIPProcessor" not in card
    (model, _), before = load_model(out), small.make_towers()
    assert torch.equal(model.vision_model.stem.weight, before.vision_model.stem.weight)
    assert not torch.equal(model.visual_projection.linear.weight, before.visual_projection.linear.weight)
    assert ClipEmbedder.from_pretrained(out).embed_texts(["a red disc"]).shape == (1, 16)
    middle = merge_weights(before, model, 0.5)
    model.load_state_dict(middle)
    model.save_pretrained(out)
    again, _ = load_model(out)
    assert all(torch.equal(value, middle[name]) for name, value in again.state_dict().items())
