"""The embedded samples are deterministic, distinct, and their captions are true."""

import re
from hashlib import sha256

import numpy as np
import pytest
from sklearn.datasets import load_iris, load_wine

from hf_clip_domain.data.images import decode_image
from hf_clip_domain.data.samples import available_samples, draw_sample, load_samples
from hf_clip_domain.errors import ClipDomainError


def test_every_domain_of_the_package_has_samples():
    assert available_samples() == ["general", "industrial", "medical", "scientific"]


@pytest.mark.parametrize("domain", available_samples())
def test_samples_are_the_same_every_time_and_a_larger_set_begins_with_the_smaller(domain):
    first = load_samples(domain, train=20, validation=0, test=4)
    again = load_samples(domain, train=12, validation=0, test=4)
    assert list(first["train"])[:12] == list(again["train"])
    assert list(first["test"])[0] != list(first["train"])[0]
    other = load_samples(domain, train=12, validation=0, test=4, seed=1)
    assert list(other["train"]) != list(again["train"])


@pytest.mark.slow
@pytest.mark.parametrize("domain", available_samples())
def test_no_caption_and_no_picture_stands_twice_in_thousands(domain):
    splits = load_samples(domain, train=2000, validation=150, test=250)
    captions = [text for rows in splits.values() for texts in rows["text"] for text in texts]
    pictures = [sha256(row["bytes"]).digest() for rows in splits.values() for row in rows["image"]]
    groups = [group for rows in splits.values() for group in rows["group"]]
    assert len(set(captions)) == len(captions)
    assert len(set(pictures)) == len(pictures) == len(set(groups)) == 2400
    assert len({label for rows in splits.values() for label in rows["label"]}) >= 8


@pytest.mark.parametrize("domain", available_samples())
def test_pictures_decode_and_are_not_blank(domain):
    for row in load_samples(domain, train=40, validation=0, test=0)["train"]:
        image = decode_image(row["image"])
        assert 60 <= min(image.size) and max(image.size) <= 288
        assert np.asarray(image).std() > 5
        assert all(20 < len(text) < 400 for text in row["text"])


def drawings(domain, label=None, count=300):
    found = [draw_sample(domain, "train", number) for number in range(count)]
    return [drawing for drawing in found if label is None or drawing.label == label]


def test_bar_charts_of_classes_name_the_class_that_is_highest_in_the_whole_table():
    """Their means come from four fifths of the rows, so only clear cases can be held against the table."""
    tables = {"iris": load_iris(), "wine": load_wine()}
    checked = 0
    for drawing in drawings("scientific", "bar chart", 900):
        table = tables.get(drawing.facts["table"])
        if table is None:
            continue
        values = table.data[:, drawing.facts["column"]]
        means = np.array([values[table.target == index].mean() for index in range(3)])
        if np.sort(means)[-1] > 1.05 * np.sort(means)[-2]:
            winner = str(table.target_names[means.argmax()]).replace("class_", "cultivar ")
            assert drawing.facts["best"] == winner and drawing.captions[1].lower().startswith(winner)
            checked += 1
    assert checked >= 10


def test_correlations_are_those_of_the_plotted_points():
    for drawing in drawings("scientific", "scatter plot"):
        stated = float(re.search(r"r = (-?[\d.]+)\)", drawing.captions[1])[1])
        assert stated == pytest.approx(drawing.facts["correlation"], abs=0.006)
        assert ("positively" in drawing.captions[1]) == (stated > 0.35)
        assert f"{drawing.facts['rows']} samples" in drawing.captions[0]


def test_inspection_captions_state_the_defects_that_were_drawn():
    words = ["no", "one", "two", "three", "four"]
    for drawing in drawings("industrial"):
        if "defects" in drawing.facts and drawing.facts["defects"]:
            assert f"with {words[drawing.facts['defects']]} " in drawing.captions[0]
            assert len(re.findall(r"[\d.]+ mm", drawing.captions[0])) == drawing.facts["defects"]
            assert f"{max(drawing.facts['sizes'])} mm" in drawing.captions[1]
        elif "missing" in drawing.facts:
            assert str(drawing.facts["present"]) in drawing.captions[0]
            assert drawing.captions[1].count("column") == drawing.facts["missing"]


def test_a_chest_phantoms_finding_is_on_the_side_the_caption_says():
    """Radiological convention: the patient's right is on the left of the picture. Read off the pixels."""
    checked = 0
    for drawing in drawings("medical", "chest phantom", 400):
        if drawing.facts["finding"] != "effusion":
            continue
        pixels = np.asarray(drawing.image.convert("L"), float)
        height, width = pixels.shape
        base = pixels[int(0.74 * height) : int(0.8 * height)]
        right_lung = base[:, int(0.16 * width) : int(0.3 * width)].mean()
        left_lung = base[:, int(0.75 * width) : int(0.88 * width)].mean()
        assert (right_lung > left_lung) == (drawing.facts["side"] == "right")
        assert f"base of the {drawing.facts['side']} lung" in drawing.captions[0]
        checked += 1
    assert checked >= 5


def test_counts_of_general_scenes():
    for drawing in drawings("general", "people"):
        stated = re.search(r"drawing of (\w+) (?:person|people)", drawing.captions[0])[1]
        assert ["one", "two", "three", "four", "five", "six", "seven"].index(stated) + 1 == drawing.facts["people"]
        assert len(re.search(r"dressed in (.*);", drawing.captions[0])[1].split(", ")) == drawing.facts["people"]
    for drawing in drawings("general", "bar chart"):
        values = drawing.facts["values"]
        best = drawing.facts["names"][int(np.argmax(values))]
        assert f"{best} is highest with {max(values)}" in drawing.captions[1]


def test_an_unknown_domain_is_refused():
    with pytest.raises(ClipDomainError, match="general, industrial, medical, scientific"):
        load_samples("culinary")
