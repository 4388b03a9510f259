"""The command at other picture sizes than the model's own."""

import json

import pytest
import torch
import yaml
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from hf_clip_domain.cli.main import main
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.models.image_positions import image_size_of
from hf_clip_domain.models.image_sizes import image_settings
from hf_clip_domain.models.loading import load_model

QUICK = ["--per_device_train_batch_size", "8", "--dataloader_num_workers", "0", "--logging_steps", "1"]
QUICK += ["--eval_strategy", "no", "--save_strategy", "no", "--probe_dataset", "none"]


@pytest.fixture
def train(tmp_path):
    """The command on a few pictures of 200 pixels, in the folder `run`."""
    for index in range(20):
        Image.new("RGB", (200, 200), (index * 12, 60, 90)).save(tmp_path / f"{index}.png")
    splits = ["train"] * 12 + ["validation"] * 4 + ["test"] * 4
    rows = [{"image": f"{i}.png", "text": f"shade {i}", "split": split} for i, split in enumerate(splits)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def train(*options, status=0):
        command = ["train", "--dataset", str(tmp_path / "pairs.jsonl"), "--model_name_or_path", "starter", *QUICK]
        assert main([*command, *options, "--output_dir", str(tmp_path / "run")]) == status
        return tmp_path / "run"

    return train


@pytest.mark.slow
def test_a_model_trained_up_to_160_needs_no_flag(train, capsys):
    folder = train("--resolutions", "96,160", "--max_steps", "3", "--micro_batch_size", "3")
    assert "The model reads pictures of 128 pixels: its positions are interpolated for 160." in capsys.readouterr().out
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    assert image_size_of(model) == image_settings(processor)[0] == 160
    pixels = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        plain = model.get_image_features(pixel_values=pixels).pooler_output
    assert torch.equal(
        torch.nn.functional.normalize(plain, dim=-1), ClipEmbedder.from_pretrained(folder).embed_images(list(pixels))
    )
    kept = yaml.safe_load((folder / "run.yaml").read_text())
    assert kept["resolutions"] == [96, 160]
    logged = json.loads((folder / "evaluation.json").read_text())
    assert logged["before"].keys() == logged["after"].keys()


@pytest.mark.slow
def test_auto_measures_and_an_adapters_folder_remembers_its_size(train, capsys):
    options = ["--resolutions", "auto", "--adapter", "lora", "--save_adapter", "adapter", "--max_steps", "1"]
    folder = train(*options, "--resolution_minutes", "1000")
    assert "Picture sizes 112, 192: about 0.0 of 1000 minutes of steps." in capsys.readouterr().out
    assert json.loads((folder / "resolutions.json").read_text())["sizes"] == [112, 192]  # the pictures have no more
    model, processor = load_model(folder)
    assert image_size_of(model) == image_settings(processor)[0] == 192
    train(*options, "--resolution_minutes", "1e-9")
    assert "Picture sizes 48, 64" in (printed := capsys.readouterr().out) and "the smallest is taken" in printed
    assert image_size_of(load_model(folder)[0]) == 64
    # A run that is resumed keeps to what was chosen, whatever its clock says today.
    train(*options, "--resolution_minutes", "1000", "--resume_from_checkpoint")
    assert "Picture sizes" not in capsys.readouterr().out and image_size_of(load_model(folder)[0]) == 64


def test_a_size_that_is_no_multiple_is_one_sentence(train, capsys):
    train("--resolutions", "200,224", status=1)
    assert "pictures of 200 pixels cannot be cut into patches of 16: take 192 or 208" in capsys.readouterr().err
