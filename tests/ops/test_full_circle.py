"""The whole circle, from a dataset's revision to a second model in service, as the script goes round it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_the_circle_closes(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        str(ROOT / "scripts" / "full_circle.py"),
        "--small",
        "--folder",
        str(tmp_path / "circle"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "The circle is closed." in done.stdout and ", 0 failed." in done.stdout
