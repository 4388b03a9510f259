"""Which differences are called real, on models of known quality."""

import json

import pytest
import torch

from hf_clip_domain.cli.main import main
from hf_clip_domain.evaluation.compare import compare
from hf_clip_domain.evaluation.embedded import EmbeddedPairs, measure_retrieval
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.similarity import cosine

METRIC = "text_to_image/mrr"


def measured(noise, seed, rows=120):
    """A model whose captions lie `noise` away from their pictures; the pictures are the same for all."""
    images = torch.randn(rows, 12, generator=torch.Generator().manual_seed(0))
    texts = images + noise * torch.randn(rows, 12, generator=torch.Generator().manual_seed(seed))
    return measure_retrieval(
        EmbeddedPairs(
            embedder=type("Plain", (), {"similarity_function": staticmethod(cosine)}),
            pairs=[],
            rows=list(range(rows)),
            texts=[str(row) for row in range(rows)],
            positives=torch.arange(rows).repeat(2, 1).T,
            image_embeds=images,
            text_embeds=texts,
        ),
        999,
    )


def test_a_large_difference_is_real_and_none_is_not(tmp_path):
    weak, strong = measured(2.0, 1), measured(0.8, 2)
    found = compare({"weak": {"x": weak}, "strong": {"x": strong}, "again": {"x": strong}}, METRIC)
    real = {(one.first, one.second): one.real for one in found.differences}
    assert real == {("weak", "strong"): True, ("weak", "again"): True, ("strong", "again"): False}
    first = found.differences[0]
    assert first.interval[0] > 0 and first.p < first.adjusted < 0.05
    table = found.table()
    assert "x: strong less weak: +" in table and "not shown (p = 1.000)" in table
    assert "real (p = 0.0" in table or "real (p < 0.001)" in table
    stored = json.loads(found.save(tmp_path / "deeper" / "matrix.json").read_text())
    assert stored["scores"]["weak"]["x"] == weak.metrics[METRIC] and len(stored["differences"]) == 3


def test_many_comparisons_of_equals_seldom_call_one_real():
    equals = {f"model {seed}": {"x": measured(1.5, seed)} for seed in range(1, 7)}
    found = compare(equals, METRIC)
    assert len(found.differences) == 15
    assert all(one.adjusted >= one.p for one in found.differences)
    assert sum(one.real for one in found.differences) <= 1


def test_too_few_pairs_are_told_apart_from_equal_ones(tmp_path):
    found = compare({name: {"x": measured(noise, 1, rows=8)} for name, noise in (("a", 2.0), ("b", 0.1))}, METRIC)
    assert not found.differences[0].real and "too few independent clusters" in found.table()
    assert "NaN" not in found.save(tmp_path / "matrix.json").read_text()


@pytest.mark.slow
def test_the_command_finds_that_shuffled_weights_are_worse(tmp_path, capsys):
    model, processor = load_model("starter")
    torch.manual_seed(0)
    weight = model.visual_projection.weight.data
    weight.copy_(torch.randn_like(weight))
    model.save_pretrained(tmp_path / "broken")
    processor.save_pretrained(tmp_path / "broken")
    command = ["compare", "starter", str(tmp_path / "broken"), "--datasets", "scientific"]
    assert main([*command, "--output", str(tmp_path / "matrix.json")]) == 0
    matrix = json.loads((tmp_path / "matrix.json").read_text())
    assert matrix["scores"]["starter"]["scientific"] > matrix["scores"][str(tmp_path / "broken")]["scientific"]
    (difference,) = matrix["differences"]
    assert difference["real"] and difference["interval"][1] < 0
    assert f"scientific: {tmp_path / 'broken'} less starter: -" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["starter", "starter", "--datasets", "general"], "names one twice"),
        (["starter", "--datasets", "genral"], "general"),
        (["starter", "--datasets", "general=./nowhere.csv"], "./nowhere.csv"),
    ],
)
def test_a_users_mistake_is_one_line(arguments, told, capsys):
    assert main(["compare", *arguments]) == 1
    assert told in capsys.readouterr().err
