"""What the guides show is what the package takes; tests/docs has the rest."""

import torch
import yaml

from hf_clip_domain.cli.options import parse_options
from hf_clip_domain.domains import load_domain
from hf_clip_domain.losses import build_loss
from tests.docs.blocks import ROOT, read_blocks

PAGES = ("docs/domains.md", "docs/custom_loss.md")


def test_the_guides_domain_and_loss_work(tmp_path, monkeypatch):
    for block in (block for page in PAGES for block in read_blocks(page) if block.file):
        (tmp_path / block.file).write_text(block.text)
    assert load_domain(tmp_path / "mine.yaml").augment.mirror == "never"
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
