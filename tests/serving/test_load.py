"""Real servers under load, briefly: `scripts/bench_serving.py` measures the same for longer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_serving.py"


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, str(SCRIPT), "--size", "tiny", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)


@pytest.mark.integration
def test_saturated_with_bad_requests_disconnects_and_swaps_every_embedding_is_right():
    done = run("--soak", "8")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    compared = int(re.search(r"([\d,]+) embeddings compared", done.stdout)[1].replace(",", ""))
    assert compared > 50 and "every answer was right" in done.stdout and "[200, 200, 200]" in done.stdout
    left, bad = (int(re.search(rf"([\d,]+) {what}", done.stdout)[1].replace(",", "")) for what in ("clients", "of"))
    assert left > 0 and bad > 0


@pytest.mark.integration
def test_the_comparison_runs_and_tells_every_figure():
    done = run("--seconds", "0.5", "--rounds", "1")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("of the better plain one") == 12 and "also" not in done.stdout
    assert float(re.search(r"1 clients: .* x([\d.]+);", done.stdout)[1]) > 2  # cached texts
    for kind in ("texts", "pictures"):
        model, rest = re.search(rf"saturation, {kind}: model ([\d.]+)%, .*all else ([\d.]+)%", done.stdout).groups()
        assert float(model) > 0 and float(rest) > 0
