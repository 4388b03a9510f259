"""The page of a run: whole, small, harmless, and true."""

import math
import os
import re
import time

import pytest
from html_page import Page
from transformers import TrainerState

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.charts import BOTTOM, HEIGHT, LEFT, POINTS, RIGHT, TOP, WIDTH, Curve, line_chart, ticks
from hf_clip_domain.training import ClipTrainer
from hf_clip_domain.training.callbacks import live_page
from hf_clip_domain.training.callbacks.live_page import LivePage
from hf_clip_domain.training.live_page import EVENTS, RunPage


def arguments(folder, **settings):
    settings = {"per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True, "report_to": [], **settings}
    return ClipTrainingArguments(str(folder), live_page=True, **settings)


class Falling:
    """An evaluator whose score rises with every call."""

    calls = 0

    def __call__(self, model):
        self.calls += 1
        return {"text_to_image/recall@1": 0.1 * self.calls, "text_to_image/mrr": 0.2 * self.calls}


def points(page):
    return [[tuple(map(float, point.split(","))) for point in line["points"].split()] for line in page.all("polyline")]


def test_a_curve_is_drawn_where_its_values_are():
    curve = Curve()
    for step, value in ((0, 0.0), (10, 5.0), (20, 10.0)):
        curve.add(step, value)
    html = line_chart("A & B", {"x": curve})
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    (line,) = points(Page(html))
    assert line == [
        pytest.approx(point, abs=0.1) for point in ((LEFT, HEIGHT - BOTTOM), (middle_x, middle_y), (WIDTH - RIGHT, TOP))
    ]
    (svg,) = Page(html).all("svg")
    assert svg["role"] == "img" and svg["aria-label"] == "A & B: x 10"


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 0), (3, 3), (-2, 7e9), (1e-9, 2e-9), (0.1, 0.3), (-5, -4), (0, 1.0000001)]
)
def test_ticks_enclose_and_are_few_and_round(low, high):
    marks = ticks(low, high)
    step = marks[1] - marks[0]
    assert marks[0] <= low + 1e-6 * step and marks[-1] >= high - 1e-6 * step and 2 <= len(marks) <= 8
    assert f"{step:.3e}"[:4] in ("1.00", "2.00", "2.50", "5.00")


def test_a_long_curve_keeps_its_ends_its_mean_and_its_peaks():
    mean, peak = Curve(), Curve(highest=True)
    for step in range(1, 300_001):
        mean.add(step, step)
        peak.add(step, 9.0 if step == 123_456 else 1.0)
    for curve in (mean, peak):
        assert POINTS / 2 <= len(curve.points()) <= POINTS
        assert curve.points()[-1][0] == 300_000
        assert [x for x, _ in curve.points()] == sorted({x for x, _ in curve.points()})
    width = mean.points()[0][0]
    assert all(value == pytest.approx(step - (width - 1) / 2) for step, value in mean.points()[:-1])
    assert max(value for _, value in peak.points()) == 9.0


def test_what_is_not_finite_is_told_but_not_drawn():
    page = RunPage("run")
    for step, loss in enumerate((1.0, math.nan, math.inf, 2.0, math.nan)):
        page.add({"step": step, "loss": loss})
    html = page.to_html()
    (line,) = points(Page(html))
    assert len(line) == 2 and all(math.isfinite(number) for point in line for number in point)
    assert re.search(r"<dt>Loss</dt><dd>nan</dd>", html)
    only = RunPage("run")
    only.add({"step": 1, "loss": math.nan})
    Page(only.to_html())  # nothing to draw, and still a page


def test_hundreds_of_thousands_of_steps_make_a_small_page():
    page = RunPage("run", step=200_000, max_steps=200_000)
    names = ["loss", "learning_rate", "pairs_per_second", "memory/peak_mib", "memory/process_mib", "time_share/data"]
    for step in range(0, 200_000, 5):
        page.add({"step": step, **dict.fromkeys(names, 1 / (step + 1))})
    for step in range(5000):
        page.add({"step": step, "event": f"replay at {step}"})
    html = page.to_html()
    assert len(html) < 100_000
    assert "replay at 4999<" in html and f"replay at {4999 - EVENTS}<" not in html
    assert f"And {5000 - EVENTS:,} earlier ones." in html


def test_no_text_becomes_markup_and_nothing_is_fetched():
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;"
    page = RunPage(evil, metric=f"eval_{evil}", state="failed", reason=evil)
    page.add({"step": 1, "event": evil})
    page.add({"step": 1, f"eval_{evil}": 0.5, "loss": 1.0})
    page.add({"step": 2, f"eval_{evil}": 0.6, "loss": 0.5})
    read = Page(page.to_html())
    tags = {tag for tag, _ in read.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "a", "form"}
    assert read.text.count("<script>alert(1)</script>") >= 4  # as text
    for _, attributes in read.tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "href", "srcset")}
    assert "http://" not in page.to_html() and "https://" not in page.to_html() and "url(" not in page.to_html()


def test_the_page_can_be_read_by_anyone():
    page = RunPage("run", step=2, max_steps=4)
    page.add({"step": 1, "loss": 1.0})
    html = page.to_html()
    read = Page(html)
    assert read.all("html") == [{"lang": "en"}] and read.all("progress")[0]["aria-label"]
    assert any(meta.get("name") == "viewport" for meta in read.all("meta"))
    assert "prefers-color-scheme:dark" in html and all(svg["aria-label"] for svg in read.all("svg"))
    assert "<title>run: running, step 2</title>" in html


def test_only_a_running_page_reloads_itself():
    for state in ("running", "finished", "failed"):
        metas = Page(RunPage("run", state=state).to_html()).all("meta")
        assert any(meta.get("http-equiv") == "refresh" for meta in metas) == (state == "running")


def test_a_run_leaves_a_finished_page_that_a_resumed_run_continues(tmp_path, clip, pairs):
    def train(steps, resume):
        trainer = ClipTrainer(
            clip(),
            arguments(tmp_path, max_steps=steps, logging_steps=1, eval_strategy="steps", eval_steps=2, save_steps=2),
            train_dataset=pairs(32),
            eval_dataset=pairs(8),
            evaluators=[Falling()],
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer, (tmp_path / "run.html").read_text()

    _, first = train(4, None)
    trainer, second = train(8, True)
    for html, steps in ((first, 4), (second, 8)):
        read = Page(html)
        assert f"Step {steps} of {steps}." in read.text and "finished" in read.text
        assert len(points(read)[0]) == steps  # the loss of every step, also of those before the interruption
        assert "Training started, for 4 steps." in read.text
        for title in ("Loss", "Held-out recall", "Pairs a second", "Where the time goes", "Memory"):
            assert title in read.text
        assert str(tmp_path.parent) not in html
    assert "Training resumed at step 4, for 8 steps." in Page(second).text
    assert "Training resumed" not in Page(first).text
    assert {path.name for path in tmp_path.iterdir()} == {
        "run.html",
        "checkpoint-4",
        "checkpoint-6",
        "checkpoint-8",
    } - ({"checkpoint-4"})
    assert trainer.state.log_history[0] == {"event": "Training started, for 4 steps.", "step": 0}


def test_the_page_is_rewritten_rarely_but_at_evaluations_and_at_the_end(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(live_page.time, "monotonic", lambda: now[0])
    written = []
    page, state = LivePage(tmp_path / "deep" / "run.html"), TrainerState(max_steps=100)
    monkeypatch.setattr(page, "_write", written.append)
    page.begin(state, arguments(tmp_path))
    for step in range(1, 101):
        state.global_step = step
        state.log_history.append({"step": step, "loss": 1.0})
        now[0] += 1
        page.update(state)
    assert len(written) == 10
    assert "about 0 h 1 min left" in written[5] or "less than a minute left" in written[5]
    page.update(state, at_once=True)
    page.end(state, None)
    assert len(written) == 12 and "min left" not in written[-1]


def test_a_reader_never_sees_half_a_page(tmp_path, monkeypatch):
    page, state = LivePage(tmp_path / "run.html"), TrainerState(max_steps=1)
    page.begin(state, arguments(tmp_path))
    page.update(state, at_once=True)
    before = (tmp_path / "run.html").read_text()

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        page.end(state, "reason")
    assert (tmp_path / "run.html").read_text() == before


def test_a_disk_that_takes_no_page_stops_nothing(tmp_path, clip, pairs, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(live_page.os, "replace", full)
    trainer = ClipTrainer(clip(), arguments(tmp_path, max_steps=2, save_strategy="no"), train_dataset=pairs(16))
    monkeypatch.setattr(live_page.logger, "warning_once", lambda text: warnings.append(text))
    warnings = []
    trainer.train()
    assert trainer.state.global_step == 2 and "No space left" in warnings[0]


def test_writing_is_quick_however_long_the_run(tmp_path):
    """What is already in the curves is not gone through again."""
    page, state = LivePage(tmp_path / "run.html"), TrainerState(max_steps=10**6)
    page.begin(state, arguments(tmp_path))
    state.log_history = [{"step": step, "loss": 1.0, "learning_rate": 0.1} for step in range(100_000)]
    page.update(state, at_once=True)
    seen = []
    page._page.add = seen.append
    state.log_history.append({"step": 100_000, "loss": 2.0})
    start = time.perf_counter()
    page.update(state, at_once=True)
    assert len(seen) == 1 and time.perf_counter() - start < 1
