"""A model is trained, served and watched: the reference of the run, the command's verdicts, and what it writes."""

import asyncio
import base64
import io
import json
import sys
import time

import httpx
import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageFilter
from small_clip import save_clip

from hf_clip_domain.cli import monitor
from hf_clip_domain.cli.main import main
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.models.fingerprint import fingerprint
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.ops.drift.feedback import hits
from hf_clip_domain.ops.drift.making import hashed_texts, identity, noting_quality, pair_scores
from hf_clip_domain.ops.drift.reference import Reference
from hf_clip_domain.serving.app import create_app
from hf_clip_domain.serving.centre import read_centre
from hf_clip_domain.serving.settings import Settings
from hf_clip_domain.serving.statistics import RequestStatistics

SPLITS = ["train"] * 60 + ["validation"] * 100 + ["test"] * 60
NAMES_OF_PAIRS = ("image", "text", "quality", "alignment", "pairing", "terms")
WORDS = "red green blue dark pale warm".split()


def draw(number, seed=0):
    """A picture of coloured tiles and its caption."""
    random = np.random.default_rng([seed, number])
    tiles = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(tiles).resize((32, 32), Image.Resampling.NEAREST), " ".join(random.choice(WORDS, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the real command: a small real CLIP, two steps, with a reference beside it."""
    folder = tmp_path_factory.mktemp("run")
    save_clip(folder / "base", patch=8, width=48)
    (folder / "pairs").mkdir()
    rows = []
    for number, split in enumerate(SPLITS):
        picture, caption = draw(number)
        picture.save(folder / "pairs" / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": caption, "label": caption[:4], "split": split}))
    (folder / "pairs" / "metadata.jsonl").write_text("\n".join(rows))
    command = ["train", "--model_name_or_path", str(folder / "base"), "--dataset", str(folder / "pairs")]
    command += ["--domain", "scientific", "--probe_dataset", "none", "--max_steps", "2", "--precision", "fp32"]
    command += ["--per_device_train_batch_size", "16", "--dataloader_num_workers", "0", "--monitor", "false"]
    command += ["--live_page", "false", "--eval_strategy", "no", "--save_strategy", "no", "--report_to", "none"]
    assert main([*command, "--output_dir", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def served(run, tmp_path_factory):
    """Folders of statistics as a server would write them, by what is asked."""
    embedder = ClipEmbedder.from_pretrained(run)
    changes = {
        "same": (lambda picture: picture, str),
        "blurred": (lambda picture: picture.filter(ImageFilter.GaussianBlur(3)), str),
        "other words": (lambda picture: picture, lambda text: f"zqx {text[::-1]} vj"),
    }
    folders = {}
    for name, (change, say) in changes.items():
        folders[name] = tmp_path_factory.mktemp("statistics")
        statistics = RequestStatistics(folders[name], **identity(embedder), requests=100)
        pictures, texts = zip(*(draw(number, seed=1) for number in range(200)), strict=True)
        qualities, texts = [], list(map(say, texts))
        images = embedder.embed_images(noting_quality(embedder, map(change, pictures), qualities))
        embeds, ids = embedder.embed_texts(texts), embedder.processor.tokenizer(texts)["input_ids"]
        scores = pair_scores(embedder, images, embeds)
        for row in range(200):
            one = slice(row, row + 1)
            statistics.record(
                image_embeds=images[one].numpy(),
                text_embeds=embeds[one].numpy(),
                pair_scores=scores[one],
                token_ids=ids[one],
                image_sizes=[(32, 32)],
                image_qualities=qualities[one],
            )
    return folders


@pytest.mark.slow
def test_a_run_leaves_a_reference_of_its_held_out_pairs(run):
    reference = Reference.load(run / "drift_reference.npz")
    assert list(reference.tests) == ["image", "text", "quality", "alignment", "pairing", "terms"]
    assert len(reference.arrays["pair_scores"]) == 160 and reference.meta["origin"] == "held-out pairs"
    model, _ = load_model(str(run))  # from the disk again
    assert reference.meta["revision"] == fingerprint(model) and reference.meta["resolution"] == 32
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert reference.meta["revision"] != fingerprint(model)
    centre, fresh = read_centre(run, fingerprint(load_model(str(run))[0])), ClipEmbedder.from_pretrained(run)
    pictures, texts = zip(*(draw(number) for number in range(60, 220)), strict=True)
    margins = centre.margins(fresh.embed_images(pictures).numpy(), fresh.embed_texts(texts).numpy())
    np.testing.assert_allclose(np.sort(reference.arrays["pair_margins"]), np.sort(margins), atol=1e-5)
    assert read_centre(run, fingerprint(model)) is None and read_centre(run / "no", "") is None
    embedder = ClipEmbedder.from_pretrained(run)
    counts = sum(len(text) for text in hashed_texts(embedder, [draw(n)[1] for n in range(60, 220)]))
    assert reference.arrays["token_counts"].sum() == counts


@pytest.mark.slow
def test_traffic_as_before_is_no_drift_and_changed_traffic_is_named(run, served, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["monitor", str(run), "--statistics", str(served["same"]), "--output", str(out)]) == 0
    assert "No drift" in capsys.readouterr().out
    assert not json.loads((out / "drift.json").read_text())["drift"]

    assert main(["monitor", str(run), "--statistics", str(served["blurred"]), "--output", str(out)]) == 3
    printed = capsys.readouterr().out
    assert "DRIFT in image embeddings" in printed and "The pictures changed and the texts did not" in printed
    found = json.loads((out / "drift.json").read_text())
    assert found["drift"] and {"image", "quality"} <= set(found["drifted"]) and "text" not in found["drifted"]
    assert "The pictures are less sharp" in found["suggestion"]["text"]
    assert found["figures"]["sharpness"]["window"] < found["figures"]["sharpness"]["reference"]
    command = found["suggestion"]["command"]
    assert command.startswith(
        f"hf-clip-domain train --domain scientific --dataset NEW_PAIRS --model_name_or_path {run}"
    )

    assert main(["monitor", str(run), "--statistics", str(served["other words"]), "--output", str(out)]) == 3
    found = json.loads((out / "drift.json").read_text())
    assert {"text", "terms"} <= set(found["drifted"]) and "image" not in found["drifted"]
    assert {"z", "q", "x", "v", "j"} <= {
        term for terms in found["suggestion"]["new_terms"] for term in terms.split("/")
    }


@pytest.mark.slow
def test_a_server_is_asked_watched_and_says_so(run, tmp_path):
    """From requests over HTTP to the verdict that the same server shows: the model as it was trained, no file made up."""
    out, statistics = tmp_path / "out", tmp_path / "statistics"

    def monitor():
        return main(["monitor", str(run), "--statistics", str(statistics), "--output", str(out)])

    async def ask():
        settings = Settings(model=str(run), statistics=str(statistics), statistics_window=10, drift=str(out))
        app = create_app(settings)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=60) as client,
        ):

            async def traffic(numbers, change):
                before = app.state.service.recorder.windows
                for start in range(0, len(numbers), 10):
                    pairs = []
                    for number in numbers[start : start + 10]:
                        picture, text = draw(number, seed=2)
                        change(picture).save(stream := io.BytesIO(), "PNG")
                        pairs.append({"image": base64.b64encode(stream.getvalue()).decode(), "text": text})
                    assert (await client.post("/pairs", json={"pairs": pairs})).status_code == 200
                while app.state.service.recorder.windows == before:
                    await asyncio.sleep(0.01)

            async def shown():
                return (await client.get("/stats")).json()["drift"]

            assert (await shown())["status"] == "missing"
            await traffic(range(100), lambda picture: picture)
            assert await asyncio.to_thread(monitor) == 0 and (await shown())["status"] == "ok"
            tests = json.loads((out / "drift.json").read_text())["looks"][0]["tests"]
            assert {name: test["rows"] for name, test in tests.items()} == dict.fromkeys(NAMES_OF_PAIRS, 100)
            await traffic(range(100, 200), lambda picture: picture.filter(ImageFilter.GaussianBlur(3)))
            assert await asyncio.to_thread(monitor) == 3
            status = await shown()
            assert status["status"] == "drift" and "quality" in status["drifted"] and status["windows"] == 2
            assert 'drift_detected{test="quality"} 1' in (await client.get("/metrics")).text

    asyncio.run(ask())


@pytest.mark.slow
def test_what_is_written_for_machines_and_people_is_well_formed(run, served, tmp_path):
    parser = pytest.importorskip("prometheus_client.parser")
    command = ["monitor", str(run / "drift_reference.npz"), "--statistics", str(served["blurred"])]
    assert main([*command, "--output", str(tmp_path)]) == 3
    families = {
        family.name: family for family in parser.text_string_to_metric_families((tmp_path / "drift.prom").read_text())
    }
    detected = {sample.labels["test"]: sample.value for sample in families["hf_clip_domain_drift_detected"].samples}
    assert detected["image"] == 1 and detected["text"] == 0
    assert families["hf_clip_domain_drift_windows"].samples[0].value == 2

    rules = yaml.safe_load((tmp_path / "drift_rules.yaml").read_text())["groups"][0]["rules"]
    for rule in rules:
        assert {"alert", "expr", "for", "labels", "annotations"} == set(rule)
    named = " ".join(rule["expr"] for rule in rules)
    assert all(
        name in named for name in ("detected", "last_check_timestamp_seconds", "windows_skipped", "drift_status")
    )

    page = (tmp_path / "drift.html").read_text()
    assert (
        "DRIFT in image embeddings" in page and page.count("<svg") == 3 and "http" not in page and "<script" not in page
    )
    labels = {draw(number)[1][:4] for number in range(60, 220)}
    assert any(f"<td>{label}" in page for label in labels)  # what comes nearest to the shifted rows


@pytest.mark.slow
def test_drift_is_told_and_watched(run, served, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    program = tmp_path / "keep.py"
    program.write_text(f"import sys; open({str(kept)!r}, 'a').write(sys.stdin.read() + chr(10))")
    looks, wait = [], time.sleep

    def sleep(seconds):
        if seconds < 60:  # somebody else's, such as that of waiting for the program
            return wait(seconds)
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(monitor.time, "sleep", sleep)
    command = ["monitor", str(run), "--statistics", str(served["blurred"]), "--watch", "60"]
    assert main([*command, "--webhook", f"command: {sys.executable} {program}"]) == 130
    (message,) = map(json.loads, kept.read_text().splitlines())  # once, though it was looked at twice
    assert looks == [60, 60] and "image" in message["drifted"] and "hf-clip-domain train" in message["command"]


@pytest.mark.slow
def test_labelled_pairs_measure_degradation(run, tmp_path, capsys, served):
    """Pairs whose captions were dealt out anew are no better than chance; the reference's own show no change."""
    command = ["monitor", str(run), "--statistics", str(served["same"]), "--output", str(tmp_path), "--feedback"]
    assert main([*command, str(run.parent / "pairs")]) == 0
    found = json.loads((tmp_path / "drift.json").read_text())["feedback"]
    low, high = found["change_interval"]
    assert low <= found["change"] <= high and low < 0 < high and found["pairs"] == 220
    assert "labelled pairs: the right text is first among 20" in capsys.readouterr().out


def test_the_chance_to_be_first_among_twenty_is_exact():
    embedder = type("Embedder", (), {"similarity_function": staticmethod(lambda a, b: a @ b.T)})
    random = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(60, 6, generator=random), dim=1) for _ in range(2))
    chances = hits(embedder, images, texts)
    scores, draws = (images @ texts.T).numpy(), np.random.default_rng(0)
    for row in (0, 17, 59):
        others = np.delete(scores[row], row)
        drawn = np.mean([draws.choice(others, 19, replace=False).max() < scores[row, row] for _ in range(4000)])
        assert chances[row] == pytest.approx(drawn, abs=0.03)
    assert (hits(embedder, texts, texts) == 1).all()


@pytest.mark.slow
def test_a_reference_of_requests_knows_their_scores_too(run, served, tmp_path):
    reference = tmp_path / "reference.npz"
    command = ["monitor", str(run), "--make_reference", "--statistics", str(served["same"])]
    assert main([*command, "--reference", str(reference)]) == 0
    assert Reference.load(reference).meta["origin"] == "requests"
    assert main(["monitor", str(run), "--reference", str(reference), "--statistics", str(served["blurred"])]) == 3


def test_wrong_usage_is_said_before_anything_is_loaded(tmp_path, capsys):
    reference = tmp_path / "reference.npz"
    Reference({"model": "m", "revision": "r", "resolution": 1}, {"pair_scores": np.arange(60.0)}).save(reference)
    cases = {
        ("starter",): "--statistics DIR is needed",
        ("starter", "--statistics", str(tmp_path)): "--make_reference --dataset",
        (str(reference), "--statistics", str(tmp_path / "no")): "no such folder",
        (str(reference), "--statistics", str(tmp_path), "--watch", "0"): "--watch 0",
        (str(reference), "--statistics", str(tmp_path), "--webhook", "nobody"): "--webhook: expected http",
        (str(reference), "--statistics", str(tmp_path), "--horizon", "5000"): "or less, or larger --false_alarms",
        (str(reference), "--make_reference"): "needs the model",
        ("starter", "--make_reference"): "--reference FILE",
    }
    for options, message in cases.items():
        assert main(["monitor", *options]) == 1
        assert message in capsys.readouterr().err
