"""The page that a run leaves, as a browser shows it: without a network, every picture there, readable everywhere."""

import os
import shutil
from pathlib import Path

import pytest

from hf_clip_domain.cli.main import main

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "no chromium on this machine: apt-get install chromium"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny real run, with all that a report can hold."""
    out = tmp_path_factory.mktemp("run")
    command = [
        "train",
        "--domain",
        "industrial",
        "--smoke",
        "--wise_ft",
        "true",
        "--forgetting_budget",
        "50",
        "--probe_rows",
        "16",
    ]
    assert main([*command, "--eval_resolutions", "64,128", "--output_dir", str(out)]) == 0
    return out


def artefacts(tmp_path):
    folder = Path(os.environ.get("TEST_ARTEFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
@pytest.mark.parametrize("page_file", ["report.html", "run.html"])
def test_a_run_s_page_opens_offline_and_whole(browser, run, tmp_path, page_file, scheme, width):
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True)
    asked, complaints = [], []
    context.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    address = (run / page_file).as_uri()
    page.goto(address)
    images = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.alt])")
    page.screenshot(path=artefacts(tmp_path) / f"{page_file}_{scheme}_{width}.png", full_page=True)
    assert [url for url in asked if not url.startswith("data:")] == [address] and not complaints
    assert all(complete and natural > 0 for complete, natural, _ in images)
    assert (len(images) > 20) == (page_file == "report.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # wide tables scroll by themselves
    if page_file == "report.html":
        seen = page.inner_text("main")
        assert all(word in seen for word in ("Retrieval", "What was kept", "Picture sizes", "Gallery", "Training"))
        assert page.locator("article").count() >= 12
        for link in page.locator("nav a").all():
            assert page.locator(link.get_attribute("href")).is_visible()
        ink, back = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
        assert (brightness(ink) < brightness(back)) == (scheme == "light")
    context.close()


def brightness(color):
    return sum(map(int, color.removeprefix("rgb(").removesuffix(")").split(",")))
