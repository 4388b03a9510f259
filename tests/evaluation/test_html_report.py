"""The page of results: whole, self-contained, harmless whatever the captions say, and true to the report."""

import base64
import io
import re

import pytest
from html_page import Page
from PIL import Image

from hf_clip_domain.domains import load_domain
from hf_clip_domain.evaluation import EvaluationReport, RetrievalEvaluator
from hf_clip_domain.evaluation.gallery import Thumbnails, find_cases, to_json
from hf_clip_domain.evaluation.html_report import to_html, write_html
from hf_clip_domain.evaluation.html_tables import CLASSES, PICTURED, confusion_matrix
from hf_clip_domain.evaluation.suite import measure

EVIL = (
    "\"'><script>alert(1)</script><img src=x onerror=alert(2)>",
    "فحص الصدر الطبيعي بلا علامات مرضية",
    "&amp; &lt;b&gt; ' onload='x",
    "long " * 4000 + "end",
    "averylongwordwithoutanyplacetobreak" * 50,
)


def assert_self_contained(html):
    """Pictures decode, links stay in the page, nothing runs, and all of it is small."""
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form", "embed", "base"}
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for _, attributes in page.tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("srcset", "background")}
        assert attributes.get("href", "#")[0] == "#" and attributes.get("href", "#x")[1:] in {*anchors, "x"}
        assert "src" not in attributes or attributes["src"].startswith("data:image/jpeg;base64,")
    assert "http://" not in html and "https://" not in html and "url(" not in html and "@import" not in html
    for image in page.all("img"):
        data = base64.b64decode(image["src"].partition(",")[2], validate=True)
        Image.open(io.BytesIO(data)).load()
        assert "alt" in image
    assert len(html.encode()) < 2_000_000
    return page


@pytest.fixture(scope="module")
def measured(clip, rows):
    """Two random models on pairs with hostile captions and labels: the report, and the pairs."""
    pairs = rows(24)
    for row, pair in enumerate(pairs):
        pair["text"] = [EVIL[row % len(EVIL)] + f" {row}", *pair["text"]]
        pair["label"] = ["healthy", "<b>broken</b>"][row % 2]
    domain, embedded = load_domain("medical"), []
    for seed in (0, 1):
        model, processor = clip(seed)
        embedded.append(RetrievalEvaluator(pairs, processor, domain=domain, progress=False).embed(model))
    report = EvaluationReport.compare(
        *(measure(one, domain, replicates=50) for one in embedded), domain=domain.name, dataset="<i>pairs</i>"
    )
    report.extra["gallery"] = to_json(find_cases(embedded[1], embedded[0].ahead))
    return report, pairs


def test_the_page_of_a_real_measurement(measured, tmp_path):
    report, pairs = measured
    report.save(tmp_path)
    path = write_html(EvaluationReport.load(tmp_path), tmp_path / "deeper" / "page.html", picture=Thumbnails(pairs))
    page = assert_self_contained(path.read_text(encoding="utf-8"))
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]
    assert len(page.all("article")) == len(report.extra["gallery"]) > 12
    assert len(page.all("img")) >= 2 * len(page.all("article"))
    for word in ("Retrieval", "Detection", "Confusion", "Terminology", "Gallery", "Not measured"):
        assert word in page.text
    mistakes = {"Missed": "detection/missed", "False alarms": "detection/false_alarms"}
    shown = {title: len(report.extra["details"][name]) for title, name in mistakes.items()}
    assert sum(shown.values()) and all((title in page.text) == bool(count) for title, count in shown.items())
    assert page.text.count("taken for") == sum(min(count, PICTURED) for count in shown.values()) + 1
    for key in ("image_to_text/recall@10", "text_to_image/recall@10"):
        assert f"{100 * report.after[key]:.1f}" in page.text
        low, high = report.intervals["change"][key]
        assert f"{100 * low:+.1f} to {100 * high:+.1f}" in page.text


def test_no_caption_becomes_markup(measured):
    report, pairs = measured
    html = to_html(report, picture=Thumbnails(pairs))
    page = Page(html)
    assert "<script>alert(1)</script>" in page.text and "<b>broken</b>" in page.text and "<i>pairs</i>" in page.text
    assert not any("onerror" in attributes or "onload" in attributes for _, attributes in page.tags)
    quotes = page.all("q")
    assert quotes and all(quote["dir"] == "auto" for quote in quotes)  # Arabic reads from the right
    assert EVIL[1] in page.text
    assert max(len(text) for text in re.findall(r"<q[^>]*>(.*?)</q>", html)) < 2500  # cut, however long it was
    assert "default-src 'none'" in page.all("meta")[2]["content"]


def test_a_picture_that_is_gone_is_said_and_not_broken(measured):
    page = assert_self_contained(to_html(measured[0]))
    assert not page.all("img") and page.text.count("no picture") >= 2 * len(measured[0].extra["gallery"])


def test_one_model_alone_has_scores_and_no_change(measured):
    report, _ = measured
    intervals = {"after": report.intervals["after"]}
    page = assert_self_contained(to_html(EvaluationReport({}, report.after, model="mine", intervals=intervals)))
    assert "before" not in page.text and "change" not in page.text and "How good mine is" in page.text


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ([(0.01, 0.2), (0.02, 0.2)], "better in both directions"),
        ([(-0.1, 0.3), (-0.1, 0.3)], "No change of Recall@10 can be told from chance"),
        ([(0.01, 0.2), (-0.1, 0.3)], "image → text better, text → image not told from chance"),
        ([None, None], "Too few independent queries"),
    ],
)
def test_the_first_sentence_claims_no_more_than_the_intervals(ends, said):
    keys = ["image_to_text/recall@10", "text_to_image/recall@10"]
    change = {key: list(pair) for key, pair in zip(keys, ends, strict=True) if pair}
    before, after = (dict.fromkeys([*keys, "image_to_text/recall@1"], value) for value in (0.2, 0.3))
    assert said in Page(to_html(EvaluationReport(before, after, intervals={"change": change}))).text


def test_forgetting_and_training_are_drawn(measured):
    report = measured[0]
    points = [{"alpha": a, "target": 0.2 + a / 4, "general": 0.5 - a / 5} for a in (0.0, 0.5, 1.0)]
    general = {f"general/{key}": value for key, value in report.after.items() if "_to_" in key}
    merged = EvaluationReport(
        general | report.before,
        general | report.after,
        extra={"wise_ft": {"alpha": 0.5, "forgetting_budget": 12, "points": points}},
    )
    log = [{"step": step, "loss": 1 / step, "eval_text_to_image/recall@10": step / 10} for step in range(1, 5)]
    page = assert_self_contained(to_html(merged, log_history=log))
    labels = " ".join(svg["aria-label"] for svg in page.all("svg"))
    assert "alpha 0.5 was chosen" in labels and "Loss: training 0.25" in labels and "Held-out Recall@10" in labels


def test_an_empty_report_is_still_a_page():
    assert_self_contained(to_html(EvaluationReport({}, {})))


def test_many_labels_are_cut_to_the_most_frequent():
    count = CLASSES + 30
    counts = [[row if row == column else 0 for column in range(count)] for row in range(count)]
    page = Page(confusion_matrix([f"label {number}" for number in range(count)], counts))
    assert f"label {count - 1}" in page.text and "label 29 " not in page.text + " "
    assert f"The {CLASSES} most frequent of {count} labels." in page.text
