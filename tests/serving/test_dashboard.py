"""The dashboard in a real browser, against a real server: it says what the server does, and the panel works."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import uvicorn

from hf_clip_domain.data.samples import load_samples
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.models.fingerprint import fingerprint
from hf_clip_domain.serving import Client
from hf_clip_domain.serving.app import create_app
from hf_clip_domain.serving.auth import new_key
from hf_clip_domain.serving.model import LoadedModel
from hf_clip_domain.serving.settings import Settings

from .test_recording import report

PAGE = Path(__file__).parents[2] / "hf_clip_domain" / "serving" / "dashboard" / "index.html"


def test_the_page_loads_nothing_from_elsewhere():
    text = PAGE.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert "http" not in text and "//cdn" not in text and " src=" not in text and "@import" not in text


@pytest.fixture
def browser():
    playwright_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with playwright_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def served(tmp_path):
    """Address and key of a server of the starter."""
    key, line = new_key("dashboard")
    (tmp_path / "keys").write_text(line)
    embedder = ClipEmbedder.from_pretrained("starter")
    settings = Settings(api_keys=str(tmp_path / "keys"), drift=str(tmp_path))
    config = uvicorn.Config(create_app(settings, LoadedModel(embedder, source="starter")), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", key, embedder
    server.should_exit = True
    thread.join()


@pytest.mark.integration
def test_it_shows_the_load_and_compares_a_picture_with_captions(browser, served, tmp_path):
    address, key, embedder = served
    rows = load_samples("scientific", seed=0, train=0, validation=0, test=12)["test"]
    pictures, texts = [row["image"]["bytes"] for row in rows], [row["text"][0] for row in rows]
    page = browser.new_page(viewport={"width": 1280, "height": 1150}, device_scale_factor=2)
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith((address, "blob:")) else wrong.append(request.url)
    )
    page.goto(address)
    page.get_by_text("needs an API key").wait_for()
    page.get_by_label("API key").fill(key)
    page.get_by_label("API key").press("Tab")
    page.locator("#state.ready").wait_for()
    assert page.evaluate("sessionStorage.getItem('api-key')") == key and page.evaluate("localStorage.length") == 0
    with Client(address, api_key=key) as client:
        for _ in range(4):  # the later ones are found in the cache
            client.embed_texts(texts)
            client.similarity(pictures[:6], texts)
            client.classify(pictures[6:9], ["a chart", "a galaxy"])
            time.sleep(1)
    assert (
        page.locator("#drift").inner_text() == "missing"
        and "hf-clip-domain monitor" in page.locator("#drifts").inner_text()
    )
    (tmp_path / "drift.json").write_text(report(fingerprint(embedder.model), time.time(), ["image"]))
    page.locator("#drift.error", has_text="drift").wait_for()
    said = page.locator("#drifts").inner_text()
    assert "drifted image" in said and said.endswith("windows 1")
    page.locator("#latency").get_by_text("/v1/embeddings").wait_for()
    page.locator("#batches").get_by_text("pictures").wait_for()
    assert float(page.locator("#rate").inner_text()) > 0 and page.locator("#name").inner_text() == "starter"
    assert float(page.locator("#hits").inner_text().rstrip("%")) > 10 and page.locator("#memory").inner_text().endswith(
        ("MiB", "GiB")
    )

    (tmp_path / "picture.png").write_bytes(pictures[0])
    captions = [texts[0], "a photograph of a dog", "<img src=x onerror=alert(1)>"]
    page.locator("#file").set_input_files(tmp_path / "picture.png")
    page.locator("#captions").fill("\n".join(captions))
    page.get_by_role("button", name="Compare").click()
    page.locator(".score").nth(2).wait_for()
    expected = embedder.similarity([pictures[0]], captions)[0]
    for place, text in enumerate(captions):
        row = page.locator(".score", has_text=text)
        assert abs(float(row.locator(".note").inner_text().split()[-1]) - float(expected[place])) < 2e-3
    page.wait_for_timeout(6000)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.screenshot(
            path=Path(os.environ.get("TEST_ARTEFACTS", tmp_path)) / f"dashboard_{scheme}.png", full_page=True
        )
    page.set_viewport_size({"width": 390, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#file").set_input_files({"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.get_by_role("button", name="Compare").click()
    page.locator("#scores .error").wait_for()
    assert wrong == []
