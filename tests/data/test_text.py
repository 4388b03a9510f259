"""Captions: what is taken away, what is spelt out, what must stay."""

import pytest

from hf_clip_domain.data.text import clean_caption, count_cut_captions, split_sentences
from hf_clip_domain.domains import load_domain


@pytest.mark.parametrize(
    ("domain", "raw", "clean"),
    [
        ("general", "Figure 3.2. A bridge over a river.", "A bridge over a river."),
        ("general", "Fig. 12: A bridge.", "A bridge."),
        ("general", "Table 4 A list of rivers.", "A list of rivers."),
        ("general", "Figure skating at night.", "Figure skating at night."),
        ("general", "A bridge. (credit: Ann Author)", "A bridge."),
        ("general", "A bridge (credit a: NASA (JPL); credit b: ESA) at dusk.", "A bridge at dusk."),
        ("general", "A shed. ” by Unknown/Wikimedia Commons, Public Domain)", "A shed."),
        ("general", "A tower. (Bo Bild/ Flickr/ Attribution 2.0 Generic (CC BY 2.0))", "A tower."),
        ("general", "Tax revenue rose. Source: Office of Numbers, 2025. https://example.org/x", "Tax revenue rose."),
        ("general", "A market  in\nthe   rain . )", "A market in the rain."),
        ("general", "Volunteers (and a dog) plant trees.", "Volunteers (and a dog) plant trees."),
        ("general", "A member holds a loyalty credit card.", "A member holds a loyalty credit card."),
        ("general", "Animals, e.g., dogs... and cats.", "Animals, e.g., dogs... and cats."),
        ("scientific", "Two galaxies. -ESA/Hubble Collaboration, and K. Noll (STScl))", "Two galaxies."),
        ("scientific", "A star. ; credit b: modification of work by NASA; K.L. Luhman (CfA)", "A star."),
        ("scientific", "C H subscript 4 and N a C l.", "CH4 and NaCl."),
        ("scientific", "The C u superscript 2 plus ion, 10 superscript negative 3 M.", "The Cu2+ ion, 10^-3 M."),
        ("scientific", "Panel A is a spiral. I see C.", "Panel A is a spiral. I see C."),
        ("medical", "CT of the head. A second CT.", "computed tomography (CT) of the head. A second CT."),
        ("medical", "Computed tomography (CT) of the head.", "Computed tomography (CT) of the head."),
        ("medical", "An electron microscope (TEM) view.", "An electron microscope (TEM) view."),
        ("medical", "ACT scores of the class.", "ACT scores of the class."),
        ("medical", "Dr. [**Last Name**] saw an effusion on ___.", "Dr. saw an effusion on."),
        ("medical", "XXXX year old with cough.", "year old with cough."),
        (
            "medical",
            "Tissue. LM × 1600. (Micrograph provided by a School © 2012)",
            "Tissue. Light micrograph, 1600 times.",
        ),
        ("industrial", "Weld seam, part no. A-1234, with pores.", "Weld seam, with pores."),
        ("industrial", "EL image of a cell.", "electroluminescence (EL) image of a cell."),
    ],
)
def test_clean_caption(domain, raw, clean):
    domain = load_domain(domain)
    assert clean_caption(raw, domain) == clean
    assert clean_caption(clean, domain) == clean, "cleaning twice must change nothing"


@pytest.mark.parametrize("raw", ["Figure 3.2.", "(credit: Ann Author)", "___", "Table 1"])
def test_never_empty(raw):
    assert clean_caption(raw, load_domain("medical")).strip() == raw


def test_split_sentences():
    text = "Dr. Ann A. Author looks at Mars. It is red (see Fig. 3). Is it cold? Yes. At 2.5 km it is."
    assert split_sentences(text) == [
        "Dr. Ann A. Author looks at Mars.",
        "It is red (see Fig. 3).",
        "Is it cold?",
        "Yes. At 2.5 km it is.",
    ]


@pytest.mark.parametrize("text", ["", "Mars.", "no full stop", "(a) One. (b) Two."])
def test_split_sentences_gives_at_least_one_and_loses_nothing(text):
    assert " ".join(split_sentences(text)) == text


def test_sentences_keep_every_word_of_a_long_caption():
    text = "Phases. The Moon turns. “It is full,” they say. In position E. it wanes! End."
    assert " ".join(split_sentences(text)) == text
    assert all(len(sentence.split()) >= 3 for sentence in split_sentences(text))


class Words:
    """Start, one token a word, end."""

    def __call__(self, texts, **options):
        return {"input_ids": [[0, *range(len(text.split())), 1] for text in texts]}


def test_count_cut_captions():
    assert count_cut_captions(["a b c", "a b c d", "a"] * 700, Words(), 5) == (700, 2100)
    assert count_cut_captions([], Words(), 5) == (0, 0)
