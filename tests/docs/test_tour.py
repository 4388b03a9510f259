"""The tour goes its way, with fewer pairs, and leaves what it says."""

import runpy
import sys

import pytest
from transformers import CLIPModel

from tests.docs.blocks import ROOT


@pytest.mark.slow
def test_the_tour(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tour.py", "--train", "64", "--output", str(tmp_path)])
    names = runpy.run_path(str(ROOT / "recipes/tour.py"))
    assert names["trainer"].state.global_step == 4 and names["scores"].shape == (21, 2)
    assert names["scored"][names["chosen"]][1] >= names["scored"][0][1] - 3
    assert "merged" in capsys.readouterr().out
    CLIPModel.from_pretrained(tmp_path / "model")


def test_the_tour_is_one_of_cells_that_editors_open():
    text = (ROOT / "recipes/tour.py").read_text()
    assert text.startswith("# %% [markdown]\n") and text.count("\n# %%") >= 8
