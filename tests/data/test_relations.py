"""Ids and terms by which a loss tells positives from negatives."""

import numpy as np
import pytest

from hf_clip_domain.data.relations import relation_values, term_vector
from hf_clip_domain.domains import load_domain
from hf_clip_domain.errors import ClipDomainError

ROW = {"image": {"bytes": b"a", "path": None}, "label": "Crack"}


def test_equal_pictures_and_labels_have_equal_ids():
    domain = load_domain("industrial")
    twin = {"image": {"bytes": b"a", "path": "elsewhere.jpg"}, "label": " crack "}
    other = {"image": {"bytes": b"b", "path": None}, "label": "scratch"}
    first, second, third = (relation_values(row, "", domain, ("image", "label")) for row in (ROW, twin, other))
    assert first == second and first["image"] != third["image"] and first["label"] != third["label"]


def test_a_row_without_a_label_is_like_no_other():
    domain = load_domain("industrial")
    ids = [
        relation_values({"image": {"path": f"{name}.jpg"}, "label": None}, "", domain, ("label",))["label"]
        for name in "ab"
    ]
    assert ids[0] != ids[1]


def test_terms_are_found_spelt_out_or_short():
    domain = load_domain("scientific")
    long, short, none, inside = (
        term_vector(text, domain) for text in ("An Infrared image", "An image in the IR", "An image", "Each ZIRCON")
    )
    assert long.sum() == 1 and np.array_equal(long, short) and none.sum() == inside.sum() == 0


def test_unknown_relations_and_a_domain_without_glossary_are_refused(tmp_path):
    (tmp_path / "bare.yaml").write_text("name: bare\n")
    with pytest.raises(ClipDomainError, match="'bare' has no glossary"):
        relation_values(ROW, "text", load_domain(tmp_path / "bare.yaml"), ("terms",))
    with pytest.raises(ClipDomainError, match="unknown relation 'colour'"):
        relation_values(ROW, "text", load_domain("medical"), ("colour",))
