"""The command with an adapter, with frozen parts, and with what it refuses."""

import json
import sys

import pytest
import torch
import yaml
from huggingface_hub.repocard import metadata_load
from peft import PeftModel
from PIL import Image
from transformers import CLIPModel

from hf_clip_domain.cli.main import main
from hf_clip_domain.cli.options import parse_options
from hf_clip_domain.cli.train import run
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.loading import load_model

QUICK = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--dataloader_num_workers", "0"]
QUICK += ["--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "no", "--probe_dataset", "none"]
TEXTS = ["a bar chart of rainfall", "a galaxy"]


@pytest.fixture
def train(tmp_path):
    """The command on a few pictures of one colour each, in the folder `out`."""
    for index in range(20):
        Image.new("RGB", (32, 32), (index * 12, 60, 90)).save(tmp_path / f"{index}.png")
    splits = ["train"] * 12 + ["validation"] * 4 + ["test"] * 4
    rows = [{"image": f"{i}.png", "text": f"shade {i}", "split": split} for i, split in enumerate(splits)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def train(out, *options):
        command = ["train", "--dataset", str(tmp_path / "pairs.jsonl"), "--model_name_or_path", "starter", *QUICK]
        assert main([*command, *options, "--output_dir", str(out)]) == 0

    return train


def embed(model):
    return ClipEmbedder(model, load_model("starter")[1]).embed_texts(TEXTS)


def base():
    return load_model("starter")[0]


@pytest.mark.slow
def test_an_adapters_folder_is_small_scored_and_loaded_by_everything(tmp_path, capsys, train):
    out = tmp_path / "run"
    train(out, "--adapter", "lora", "--save_adapter", "adapter", "--loss_settings", "{similarity: bilinear}")
    printed = capsys.readouterr().out
    assert "Training 2.3% of 3.98 M parameters (92,161)." in printed
    assert f"PeftModel.from_pretrained(base, {str(out)!r})" in printed
    assert not (out / "model.safetensors").exists() and (out / "adapter_model.safetensors").stat().st_size < 500_000
    plain = PeftModel.from_pretrained(base(), out)
    embedder = ClipEmbedder.from_pretrained(out)
    assert embedder.domain.name == "general" and json.loads((out / "similarity.json").read_text())["name"] == "bilinear"
    found, _ = load_model(out)
    assert (embed(found) - embed(plain)).abs().max() < 1e-5 < (embed(found) - embed(base())).abs().max()

    card = out / "README.md"
    assert metadata_load(card)["library_name"] == "peft" and "PeftModel.from_pretrained(CLIPModel" in card.read_text()
    assert str(tmp_path) not in card.read_text()
    kept = yaml.safe_load((out / "run.yaml").read_text())
    assert kept["adapter"] == "lora" and kept["save_adapter"] == "adapter" and "freeze" not in kept
    again = parse_options(["--config", str(out / "run.yaml")]).adaptation
    assert (again.adapter, again.save_adapter) == ("lora", "adapter")

    for folder in (out, out / "checkpoint-2"):  # a checkpoint of an adapter is an adapter too
        scores = tmp_path / f"{folder.name}.json"
        pairs = ["--dataset", str(tmp_path / "pairs.jsonl"), "--output", str(scores)]
        assert main(["evaluate", str(folder), *pairs]) == 0
        assert json.loads(scores.read_text())["after"]["text_to_image/mrr"] > 0


@pytest.mark.slow
def test_merged_is_a_plain_model_that_needs_no_peft(tmp_path, monkeypatch, train):
    out = tmp_path / "run"
    train(out, "--adapter", "dora", "--lora_towers", "text")
    monkeypatch.setitem(sys.modules, "peft", None)
    whole, report = CLIPModel.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    before = base()
    moved = {name for name, value in whole.named_parameters() if not torch.equal(value, before.get_parameter(name))}
    assert moved and all(name.startswith("text_model.encoder.layers") or name == "logit_scale" for name in moved)
    assert metadata_load(out / "README.md")["library_name"] == "transformers"
    with pytest.raises(ClipDomainError, match=r"hf-clip-domain\[lora\]"):
        load_model(out / "checkpoint-2")


@pytest.mark.slow
def test_an_adapter_of_an_own_base_names_its_folder_and_can_itself_be_adapted(tmp_path, train):
    mine = tmp_path / "mine"
    model, processor = load_model("starter")
    model.save_pretrained(mine)
    processor.save_pretrained(mine)
    one, two = tmp_path / "one", tmp_path / "two"
    lora = ["--adapter", "lora", "--save_adapter", "both"]
    train(one, *lora, "--model_name_or_path", str(mine))
    assert json.loads((one / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(mine)
    assert (embed(load_model(one)[0]) - embed(load_model(one / "adapter")[0])).abs().max() < 1e-5
    train(two, *lora, "--model_name_or_path", str(one / "adapter"))
    assert (embed(load_model(two)[0]) - embed(load_model(two / "adapter")[0])).abs().max() < 1e-5


@pytest.mark.slow
def test_frozen_parts_keep_their_weights_to_the_last_bit(tmp_path, capsys, train):
    out = tmp_path / "run"
    train(out, "--freeze", "vision", "text:1", "--ema_decay", "0.5", "--layerwise_learning_rate_decay", "0.8")
    assert "of 3.88 M parameters" in capsys.readouterr().out
    after, before = CLIPModel.from_pretrained(out), base()
    same = {name for name, value in after.named_parameters() if torch.equal(value, before.get_parameter(name))}
    frozen = ("vision_model.", "text_model.embeddings.", "text_model.encoder.layers.0.")
    names = {name for name, _ in after.named_parameters() if name.startswith(frozen)}
    assert names <= same and "visual_projection.weight" not in same
    assert yaml.safe_load((out / "run.yaml").read_text())["freeze"] == ["vision", "text:1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adapter", "lora", "--freeze", "vision"], "--freeze with --adapter"),
        (["--save_adapter", "both"], "--save_adapter both needs an adapter"),
        (["--adapter", "lora", "--lora_rank", "0"], "--lora_rank 0"),
        (["--adapter", "lora", "--lora_alpha", "-1"], "--lora_alpha -1"),
        (["--adapter", "lora", "--lora_dropout", "1"], "--lora_dropout 1"),
        (["--freeze", "vision", "hearing"], "--freeze hearing: expected vision, text"),
        (["--freeze", "vision:9"], "the vision tower has 5 layers"),
        (["--optim", "adamw_bnb_8bit"], "--optim adamw_bnb_8bit: .*pip install"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_any_work(tmp_path, options, message, monkeypatch):
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    monkeypatch.setattr("hf_clip_domain.cli.assembly.read_pairs", lambda *args, **kwargs: pytest.fail("data was read"))
    with pytest.raises(ClipDomainError, match=message):
        run(["--domain", "scientific", *options, "--output_dir", str(tmp_path / "run")])


def test_a_yaml_file_may_name_one_word_or_several(tmp_path):
    for text, expected in (("freeze: vision", ["vision"]), ("freeze: [vision:2, text]", ["vision:2", "text"])):
        (tmp_path / "run.yaml").write_text(text)
        assert parse_options(["--config", str(tmp_path / "run.yaml")]).adaptation.freeze == expected


def test_the_help_has_a_group_of_its_own(capsys):
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    printed = capsys.readouterr().out
    assert "what trains" in printed and "--lora_towers" in printed


def test_an_adapter_learns_at_four_times_the_domains_rate_unless_told_otherwise():
    plain = parse_options(["--domain", "medical"]).training.learning_rate
    assert parse_options(["--domain", "medical", "--adapter", "lora"]).training.learning_rate == 4 * plain
    told = ["--domain", "medical", "--adapter", "lora", "--learning_rate", "1e-5"]
    assert parse_options(told).training.learning_rate == 1e-5
