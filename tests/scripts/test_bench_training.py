"""The comparison with peers: its reference, its own program, and what it says of the targets."""

import argparse
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(SCRIPTS))
    import bench_training

    yield bench_training
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def inputs(bench, tmp_path_factory):
    from peers import inputs

    folder = tmp_path_factory.mktemp("bench") / "tiny"
    inputs.write_inputs(folder, "tiny", "scientific", None, 20)
    return folder


def test_the_reference_is_the_gradient_of_the_whole_batch(bench, inputs):
    work = bench.Work("step", str(inputs), "", 20)
    found = bench.float64_gradient(work)
    pixels, texts = work.batch_inputs()
    words = AutoTokenizer.from_pretrained(work.model)(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    model = CLIPModel.from_pretrained(work.model, dtype=torch.float64)
    model(pixel_values=pixels.double(), **words, return_loss=True).loss.backward()
    plain = {name: p.grad for name, p in model.named_parameters()}
    towers, scale = bench.relative_error(found, plain)
    assert towers < 1e-12 and scale < 1e-12
    plain["logit_scale"] = plain["logit_scale"] * 4
    assert bench.relative_error(plain, found) == (pytest.approx(0, abs=1e-12), pytest.approx(3))


@pytest.mark.slow
def test_our_program_reports_its_step_and_has_the_references_gradient(bench, inputs, tmp_path):
    work = bench.Work("step", str(inputs), str(tmp_path), 20, micro=6, gradient=True)
    found = bench.run("ours", work)
    assert found["seconds"] > 0 and found["mib"] > 0
    towers, scale = bench.relative_error(bench.tables.take_gradient(str(tmp_path)), bench.float64_gradient(work))
    assert towers < 1e-5 and scale < 1e-4


def test_targets_are_met_or_missed_as_measured(bench):
    steps = [
        {"size": "s", "batch": batch, "program": program, "micro": micro, "pairs": pairs, "mib": mib}
        for batch in (64, 256)
        for program, micro, pairs, mib in [
            ("plain", 0, 20.0, 10 * batch),
            ("ours", 0, 20.0, 9 * batch),
            ("sentence", 32, 15.0, 300),
            ("ours", 32, 16.0 if batch == 64 else 14.0, 200),
        ]
    ] + [
        {"size": "s", "batch": 1024, "program": name, "micro": 32, "pairs": 15.0, "mib": mib}
        for name, mib in [("sentence", 900), ("ours", 1000)]
    ]
    runs = [
        {"way": way, "seed": 0, "recall": recall, "epochs": [{"seconds": 10.0 * (e + 1) / speed} for e in range(3)]}
        for way, recall, speed in [
            ("plain", [1, 5, 4], 1),
            ("ours, defaults", [2, 5, 6], 4),
            ("open_clip", [1, 2, 3], 1),
        ]
    ]
    text = bench.tables.targets(steps, runs, [{"kind": "big", "times": 1.5, "apart": 0.4}], 32)
    verdicts = {line.split("|")[1].strip(): line for line in text.splitlines()[2:]}
    assert "4.00 | met" in verdicts["time to the Trainer's recall, defaults: 3 times shorter"]
    assert "1.43 (batch 256) | **missed**" in verdicts["s: a step in micro-batches at most 1.4 times the whole batch's"]
    assert "1.07, 0.93, 1.00" in text and "1,000 of 900 MiB | **missed**" in text
    assert "1,000 of 10,240 MiB | met" in text
    assert "1.50 (big) | **missed**" in text and "0.40/255 | met" in text
    assert "not reached" in bench.tables.recall(runs)


def test_each_batch_has_the_trainers_best_of_its_own(bench):
    def way(name, recall, seconds):
        epochs = [{"seconds": seconds * n} for n in (1, 2)]
        return {"way": name, "seed": 0, "recall": recall, "epochs": epochs}

    text = bench.tables.recall_by_batch(
        {
            64: [way("plain", [10, 20], 8), way("ours, defaults", [20, 21], 2)],
            1024: [way("plain", [3, 2], 6), way("open_clip", [1, 3], 6), way("ours, defaults", [2, 3], 2)],
        },
        ("plain", "ours, defaults"),
    )
    head, _, *rows = text.splitlines()
    assert head.startswith("| batch | | whole run") and len(rows) == 4
    assert rows[1] == "| 64 | **this package**, defaults | 4 | 21.0 | 2 | 8.00 |"
    assert rows[3] == "| 1,024 | **this package**, defaults | 4 | 3.0 | 4 | 1.50 |"


def test_medians_of_the_rounds_count_and_the_gradient_of_the_first(bench):
    rounds = [
        {
            "size": "s",
            "batch": 8,
            "program": program,
            "micro": 0,
            "round": turn,
            "pairs": pairs,
            "mib": mib,
            "error": error,
        }
        for turn, pairs, mib, error in [(0, 1.0, 30, 1e-6), (1, 5.0, 10, None), (2, 4.0, 20, None)]
        for program in ("plain", "ours")
    ]
    found = bench.tables.over_rounds(rounds)
    assert [line["program"] for line in found] == ["plain", "ours"]
    assert all((line["pairs"], line["mib"], line["error"]) == (4.0, 20, 1e-6) for line in found)


@pytest.mark.slow
def test_a_comparison_that_was_stopped_goes_on_where_it_was(bench, tmp_path, monkeypatch):
    measured = []

    def counted(program, work, run=bench.run):
        measured.append((program, work.gradient))
        return run(program, work)

    monkeypatch.setattr(bench, "run", counted)
    kept = tmp_path / "kept.jsonl"

    def steps(rounds):
        options = argparse.Namespace(batches=[8], domain="scientific", data=None, micro=8, steps=1, whole=12)
        options.kept, options.rounds, options.vit_b32_up_to = bench.Kept(kept, {"data": None}, "2026-01-01"), rounds, 8
        monkeypatch.setattr(bench, "_expected_gib", lambda *_: 0)
        monkeypatch.setattr(bench, "python_of", lambda _: sys.executable)  # the plain example runs anywhere
        return bench.bench_steps(tmp_path / f"of{rounds}", "tiny", options)

    first = steps(1)
    assert measured == [("plain", True), ("ours", True)]
    assert len(kept.read_text().splitlines()) == 1 + 2 and all(line["error"] < 1e-4 for line in first)
    again = steps(2)
    assert measured[2:] == [("plain", False), ("ours", False)]
    assert [line["error"] for line in again] == [line["error"] for line in first]


def test_measurements_of_something_else_are_not_taken(bench, tmp_path):
    file = tmp_path / "kept.jsonl"
    bench.Kept(file, {"data": "a", "steps": 3}, "2026-01-01").add({"size": "s", "pairs": 1.0})
    again = bench.Kept(file, {"data": "a", "steps": 3}, "2026-01-02")
    assert again.begun == "2026-01-01" and again.line({"size": "s"}) == {"size": "s", "pairs": 1.0}
    with pytest.raises(SystemExit, match="measured with .*'a'.*, not .*'b'.*Name another file"):
        bench.Kept(file, {"data": "b", "steps": 3}, "2026-01-02")


def test_tables_go_between_their_marks_and_nowhere_else(bench, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- steps: start -->\nold\n<!-- steps: end -->\nb\n")
    bench.tables.write([page], "steps", "| new |")
    assert page.read_text() == "a\n<!-- steps: start -->\n| new |\n<!-- steps: end -->\nb\n"
    bench.tables.write([page], "targets", "x")
    assert page.read_text().count("\n") == 5 and "x" not in page.read_text()
    bench.tables.check_marks([page])
    page.write_text("<!-- step: start -->\n<!-- step: end -->\n")
    with pytest.raises(SystemExit, match="page.md: no marks of steps, recall"):
        bench.tables.check_marks([page])
