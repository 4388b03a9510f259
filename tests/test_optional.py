"""A missing package is one sentence that names the extra."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hf_clip_domain._optional import require
from hf_clip_domain.errors import ClipDomainError


def test_what_is_installed_is_imported():
    assert require("json", extra="any") is json


def test_what_is_missing_names_its_extra():
    with pytest.raises(ClipDomainError, match=r'pip install "hf-clip-domain\[dicom\]"'):
        require("a_package_that_nobody_has", extra="dicom")


def test_without_airflow_the_recipe_says_what_it_needs():
    recipe = Path(__file__).parents[1] / "recipes" / "airflow_dag.py"
    done = subprocess.run([sys.executable, str(recipe)], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install apache-airflow" in done.stderr and "Traceback" not in done.stderr


def test_data_is_kept_and_checked_without_the_optional_services(tmp_path):
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for number in range(20):
        Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(pairs / f"{number}.png")
        (pairs / f"{number}.txt").write_text(f"red {number}")
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('mlflow', 'dvc', 'airflow', 'onnx', 'onnxruntime')))  # as if not installed\n"
        "from hf_clip_domain.cli.main import main\n"
        "print([main(['data', 'snapshot', sys.argv[1]]), main(['data', 'validate', sys.argv[1], '--min_rows', '1'])])"
    )
    environment = {**os.environ, "PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", program, str(pairs)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.endswith("[0, 0]\n") and "\nmd5:" in done.stdout, done.stderr
