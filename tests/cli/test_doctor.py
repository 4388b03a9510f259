"""The doctor's report and exit status, with everything whole and with one thing broken at a time."""

import importlib.metadata
import os
import subprocess
import sys

import pytest
import torch.nn.functional as F
from packaging.specifiers import SpecifierSet

from hf_clip_domain.cli import doctor, requirements
from hf_clip_domain.cli.main import main
from hf_clip_domain.cli.requirements import Version, installed_versions
from hf_clip_domain.models import precision
from hf_clip_domain.models.precision_trial import Trial


@pytest.fixture
def quick(monkeypatch):
    """No clock has a say in these reports."""
    monkeypatch.setattr(precision, "try_precision", lambda *_: Trial(speedup=1.0, error=0.0))


@pytest.mark.slow
def test_a_whole_installation_is_green_in_time():
    environment = {**os.environ, "HF_TOKEN": "hf_secret", "OMP_NUM_THREADS": "1"}
    before = os.times().children_user
    command = [sys.executable, "-m", "hf_clip_domain.cli.main", "doctor", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=700, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.times().children_user - before < 30  # seconds of computing, whatever else the machine does
    report = done.stdout
    for words in ("All checks passed.", "Device\n  cpu, ", "left to it", "Precision (what --precision auto takes)"):
        assert words in report
    for words in ("torch ", "transformers ", "peft (optional: lora)", "OMP_NUM_THREADS=1", "product, transposed left"):
        assert words in report
    assert "FAIL" not in report and "->" not in report and "hf_secret" not in report + done.stderr


def test_a_broken_operator_fails_with_advice(monkeypatch, capsys, quick):
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **options: plain(q, k, v))
    assert main(["doctor", "--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("  FAIL  attention, causal mask"))
    assert "-> Update torch; until then call model.set_attn_implementation('eager')" in lines[place + 1]
    assert lines[-1].startswith("Failed: ") and "attention, padding mask" in lines[-1]


def test_a_version_that_is_too_old_fails_with_the_command(monkeypatch, capsys, quick):
    plain = importlib.metadata.version
    monkeypatch.setattr(
        requirements.importlib.metadata, "version", lambda name: "2.1" if name == "torch" else plain(name)
    )
    assert main(["doctor", "--device", "cpu"]) == 1
    report = capsys.readouterr().out
    assert "FAIL  torch " in report and '-> pip install "torch>=' in report
    assert report.splitlines()[-1] == "Failed: torch."


def test_where_imports_fail_the_versions_are_still_told(monkeypatch, capsys):
    too_old = Version("torch", SpecifierSet(">=99"), "2.1")
    monkeypatch.setattr(doctor, "installed_versions", lambda: [too_old])
    monkeypatch.setitem(sys.modules, "hf_clip_domain.training", None)  # makes its import fail
    assert main(["doctor"]) == 1
    report = capsys.readouterr().out
    assert '-> pip install "torch>=99"' in report and "Nothing else can be checked" in report


def test_a_device_that_is_not_there_is_one_clear_line(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["doctor", "--device", "cuda"]) == 1
    assert "device 'cuda': torch" in capsys.readouterr().err


def test_optional_packages_may_be_missing_but_not_too_old():
    missing = Version("peft", SpecifierSet(">=0.17"), None, extra="lora")
    assert missing.passed and missing.advice == 'pip install "hf-clip-domain[lora]"'
    old = Version("peft", SpecifierSet(">=0.17"), "0.3", extra="lora")
    assert not old.passed and old.advice == 'pip install "peft>=0.17"'
    needed = Version("torch", SpecifierSet(">=2.8"), None)
    assert not needed.passed and needed.advice == 'pip install "torch>=2.8"'
    assert Version("torch", SpecifierSet(">=2.8"), "2.13.0+cpu").passed


def test_the_versions_are_those_of_pyproject():
    found = {version.name: version for version in installed_versions()}
    assert str(found["python"].wanted) == ">=3.11" and not found["transformers"].extra
    assert found["peft"].extra == "lora" and "pytest" not in found


def test_an_apple_user_is_told_about_fallbacks():
    assert "run on the CPU: slower" in doctor._about_mps({"PYTORCH_ENABLE_MPS_FALLBACK": "1"})
    assert "ends a run" in doctor._about_mps({"PYTORCH_ENABLE_MPS_FALLBACK": "0"})
