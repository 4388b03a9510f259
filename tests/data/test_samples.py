"""The embedded samples are deterministic, distinct, and their captions are true."""

import functools
import re
from hashlib import sha256

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_iris, load_wine

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
def test_no_caption_and_no_picture_stands_twice_in_what_a_run_draws(domain):
    splits = load_samples(domain)
    captions = [text for rows in splits.values() for texts in rows["text"] for text in texts]
    pictures = [sha256(row["bytes"]).digest() for rows in splits.values() for row in rows["image"]]
    groups = [group for rows in splits.values() for group in rows["group"]]
    assert len(set(captions)) == len(captions)
    assert len(set(pictures)) == len(pictures) == len(set(groups)) == 1400
    assert len({label for rows in splits.values() for label in rows["label"]}) >= 8


@pytest.mark.parametrize("domain", available_samples())
def test_pictures_decode_and_are_not_blank(domain):
    for row in load_samples(domain, train=40, validation=0, test=0)["train"]:
        image = decode_image(row["image"])
        assert 60 <= min(image.size) and max(image.size) <= 288
        assert np.asarray(image).std() > 5
        assert all(20 < len(text) < 400 for text in row["text"])


@functools.cache
def drawing_of(domain, number):
    return draw_sample(domain, "train", number)


def drawings(domain, label=None, count=300):
    found = [drawing_of(domain, number) for number in range(count)]
    return [drawing for drawing in found if label is None or drawing.label == label]


def test_bar_charts_of_classes_show_the_means_of_the_rows_they_count():
    tables = {"iris": load_iris(), "wine": load_wine(), "breast cancer": load_breast_cancer()}
    checked = 0
    for drawing in drawings("scientific", "bar chart", 600):
        table, rows = tables[drawing.facts["table"]], drawing.facts["rows"]
        values, target = table.data[rows, drawing.facts["column"]], table.target[rows]
        means = [values[target == index].mean() for index in range(len(table.target_names))]
        assert drawing.facts["means"] == pytest.approx(means)
        assert f"in {len(set(rows))} samples" in drawing.captions[0]
        winner = str(table.target_names[np.argmax(means)]).replace("class_", "cultivar ")
        assert drawing.captions[1].lower().startswith(winner)
        assert f"{max(means):.4g}," in drawing.captions[1]
        checked += 1
    assert checked >= 30


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


@pytest.mark.parametrize("kind", ["hole", "inclusion"])
def test_a_defects_stated_size_is_that_of_its_pixels(kind):
    """Black on a bright pane: its extent is read off the picture, in millimetres of the 50 that the width shows."""
    checked = 0
    for drawing in drawings("industrial", kind, 900):
        if drawing.facts["defects"] != 1 or "Glass" not in drawing.captions[0]:
            continue
        pixels = np.asarray(drawing.image.convert("L"), float)
        dark = pixels[: int(0.91 * pixels.shape[0])] < 100
        columns = np.flatnonzero(dark.any(axis=0))
        measured = (columns[-1] - columns[0] + 1) / pixels.shape[1] * 50
        assert measured == pytest.approx(drawing.facts["sizes"][0], abs=0.8)
        checked += 1
    assert checked >= 3


def test_no_two_stripes_of_a_flag_share_a_colour():
    for drawing in drawings("general", "flag"):
        inks = re.search(r" in (.*) with a white", drawing.captions[0])[1].split(", ")
        assert len(set(inks)) == len(inks) == drawing.facts["stripes"]


def test_a_nodule_stands_out_of_its_lung():
    checked = 0
    for drawing in drawings("medical", "chest phantom", 400):
        if drawing.facts["finding"] == "nodule":
            pixels = np.asarray(drawing.image.convert("L"), float)
            height, width = pixels.shape
            side = -1 if drawing.facts["side"] == "right" else 1
            lungs = pixels[int(0.25 * height) : int(0.42 * height)]
            with_nodule, without = (
                lungs[:, int((0.5 + sign * 0.23) * width) - 3 : int((0.5 + sign * 0.23) * width) + 4].max()
                for sign in (side, -side)
            )
            assert with_nodule > without + 40
            checked += 1
    assert checked >= 5


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
