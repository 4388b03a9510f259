"""A small real CLIP and small real pictures, for whole runs of the commands in seconds."""

import pytest
from small_clip import draw_shades, save_clip

from hf_clip_domain.cli.main import main


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A small real CLIP in a folder: 32 px pictures, a token a letter."""
    return save_clip(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """Pictures of one colour each: 24 to train on, 20 to choose by, 20 to be scored; and 40 general ones."""
    folder = tmp_path_factory.mktemp("pairs")
    draw_shades(folder / "own", ["train"] * 24 + ["validation"] * 20 + ["test"] * 20, "shade")
    draw_shades(folder / "general", ["validation"] * 20 + ["test"] * 20, "colour")
    return ["--dataset", str(folder / "own"), "--probe_dataset", str(folder / "general")]


@pytest.fixture(scope="session")
def quick(base, sources):
    """The options of a training run on these, of three steps."""
    options = ["--model_name_or_path", base, "--domain", "scientific", "--precision", "fp32", *sources]
    options += ["--max_steps", "3", "--per_device_train_batch_size", "8", "--micro_batch_size", "8"]
    options += ["--learning_rate", "1e-3", "--dataloader_num_workers", "0", "--monitor", "false"]
    options += ["--save_strategy", "steps", "--save_steps", "3", "--eval_strategy", "steps", "--eval_steps", "3"]
    return options


@pytest.fixture(scope="session")
def train(quick):
    """The command with these, with the options and in the folder given."""
    return lambda out, *options: main(["train", *quick, "--output_dir", str(out), *options])
