"""The terms and sentences themselves, and the measurement of a text tower by them."""

import math
import re

import pytest
import torch

from hf_clip_domain.data.text import clean_caption
from hf_clip_domain.domains import available_domains, load_domain
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.report import EvaluationReport
from hf_clip_domain.evaluation.terminology import (
    Terminology,
    Triple,
    available_terminologies,
    load_terminology,
    measure_terminology,
)

NAMES = ["general", "industrial", "medical", "scientific"]


def words(text):
    return set(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize("name", NAMES)
def test_there_are_enough_and_all_are_different(name):
    terminology = load_terminology(name)
    pairs = [pair for kind in terminology.minimal_pairs.values() for pair in kind]
    assert len(terminology.triplets) >= 100 and len(pairs) >= 100 and len(terminology.minimal_pairs) == 3
    assert all(len(kind) >= 30 for kind in terminology.minimal_pairs.values())
    everything = [*terminology.triplets, *pairs]
    assert len({triple.text.lower() for triple in everything}) == len(everything)
    assert len({(triple.text.lower(), triple.other.lower()) for triple in everything}) == len(everything)
    for triple in everything:
        assert len({triple.text.lower(), triple.same.lower(), triple.other.lower()}) == 3


@pytest.mark.parametrize("name", NAMES)
def test_the_domains_own_cleaning_leaves_the_difference(name):
    terminology, domain = load_terminology(name), load_domain(name)
    for triple in [*terminology.triplets, *sum(terminology.minimal_pairs.values(), ())]:
        cleaned = [clean_caption(text, domain) for text in (triple.text, triple.same, triple.other)]
        assert len(set(cleaned)) == 3 and all(cleaned)


@pytest.mark.parametrize("name", NAMES)
def test_counting_common_words_does_not_pass(name):
    """An edit shares most of its words with the sentence: whoever compares words alone prefers it."""
    terminology = load_terminology(name)
    fooled = []
    for pair in sum(terminology.minimal_pairs.values(), ()):
        common = [
            len(words(pair.text) & words(text)) / len(words(pair.text) | words(text))
            for text in (pair.same, pair.other)
        ]
        fooled.append(common[1] > common[0])
    assert sum(fooled) / len(fooled) > 0.8


def test_no_item_stands_in_two_domains():
    texts = [triple.text for name in NAMES for triple in load_terminology(name).triplets]
    assert len(set(texts)) == len(texts)


def test_every_domain_has_its_test():
    assert available_terminologies() == NAMES
    for name in available_domains():
        assert load_domain(name).terminology == name


class Known:
    """Embeds a text as the vector it is given."""

    def __init__(self, vectors):
        self.vectors = vectors

    def embed_texts(self, texts, progress=None):
        return torch.tensor([self.vectors[text] for text in texts], dtype=torch.float32)


def test_shares_by_hand():
    vectors = {"a": [1.0, 0], "near": [1, 0.1], "far": [0, 1.0], "between": [1, 1.0]}
    terminology = Terminology(
        (Triple("a", "near", "far"), Triple("a", "far", "near")),
        {"negation": (Triple("a", "near", "between"),), "quantity": (Triple("far", "a", "near"),)},
    )
    found = measure_terminology(Known(vectors), terminology, replicates=0)
    assert found.metrics == {
        "terminology/chance": 0.5,
        "terminology/triplets": 0.5,
        "terminology/minimal_pairs/negation": 1.0,
        "terminology/minimal_pairs/quantity": 0.0,
        "terminology/minimal_pairs": 0.5,
    }
    assert found.details["terminology/wrong"] == [["a", "far", "near"], ["far", "a", "near"]]


def test_a_collapsed_tower_knows_nothing():
    class Same:
        def embed_texts(self, texts, progress=None):
            return torch.ones(len(texts), 4)

    found = measure_terminology(Same(), load_terminology("medical"))
    scores = [value for key, value in found.metrics.items() if not key.endswith("chance")]
    assert scores == [0.0] * 5


def test_random_embeddings_score_chance_and_the_table_says_so():
    class Random:
        def embed_texts(self, texts, progress=None):
            return torch.randn(len(texts), 64, generator=torch.Generator().manual_seed(0))

    found = measure_terminology(Random(), load_terminology("general"))
    triplets = found.metrics["terminology/triplets"]
    assert abs(triplets - 0.5) < 3 * math.sqrt(0.25 / 100)
    table = EvaluationReport.compare(found, found).table()
    assert "terminology:" in table and "Chance: 50.0%." in table and "minimal pairs, quantity (%)" in table


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "expected one of general"),
        ("triplets: [a | b]", r"triplets\[0\]"),
        ("triplets: [a | b | a]", r"triplets\[0\]"),
        ("minimal_pairs: {negation: nothing}", "minimal_pairs.negation"),
        ("others: []", "expected `triplets"),
        ("[", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_test_is_told(tmp_path, text, told):
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ClipDomainError, match=told):
        load_terminology(str(file))


def test_a_file_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("triplets:\n  - one | two | three\n")
    assert load_terminology(str(tmp_path / "mine.yaml")).triplets == (Triple("one", "two", "three"),)
