"""What the guides show is what the package takes."""

import re
from pathlib import Path

import torch
import yaml

from hf_clip_domain.cli.options import parse_options
from hf_clip_domain.domains import load_domain
from hf_clip_domain.losses import build_loss

ROOT = Path(__file__).parents[1]


def blocks(file, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), re.DOTALL)


def test_the_guides_domain_and_loss_work(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(blocks("docs/domains.md", "yaml")[0])
    assert load_domain(tmp_path / "mine.yaml").augment.mirror == "never"
    (tmp_path / "my_losses.py").write_text(blocks("docs/custom_loss.md", "python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    loss = build_loss("my_losses:ImageToText")
    perfect = loss(torch.eye(4), torch.eye(4), logit_scale=torch.tensor(100.0)).loss
    assert perfect < 1e-6 < loss(torch.eye(4), torch.eye(4).roll(1, 0), logit_scale=torch.tensor(100.0)).loss


def test_every_recipe_opens_with_its_command_and_parses():
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert len(recipes) >= 4
    for recipe in recipes:
        first = recipe.read_text().splitlines()[0]
        assert first == f"# accelerate launch recipes/finetune.py --config recipes/{recipe.name}"
        assert parse_options(["--config", str(recipe)]).domain.name == yaml.safe_load(recipe.read_text())["domain"]
