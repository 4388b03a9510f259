"""What only a Mac with Apple's GPU can show: `pytest -m mps`."""

import subprocess
import sys

import pytest
import torch

from hf_clip_domain import memory
from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.device import describe, find_device
from hf_clip_domain.training.canary import check_before_training, checks_for, run_check

pytestmark = [
    pytest.mark.mps,
    pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs Apple's GPU (MPS)"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_canary_passes(precision):
    device = torch.device("mps")
    results = [run_check(check, device) for check in checks_for(precision)]
    assert not [result for result in results if not result.passed]
    check_before_training(device, precision)


def test_the_device_is_found_and_described():
    assert find_device().type == "mps"
    found = describe(torch.device("mps"))
    assert found.kind == "mps" and found.memory > 2**30 and memory.room(torch.device("mps")) > 0
    assert found.apple_generation is None or found.apple_generation >= 1


def test_auto_decides_and_accelerate_agrees(tmp_path):
    arguments = ClipTrainingArguments(str(tmp_path), precision="auto")
    assert arguments.device.type == "mps" and arguments.precision in ("fp32", "bf16")
    assert arguments.mixed_precision == {"fp32": "no", "bf16": "bf16"}[arguments.precision]


def test_the_doctor_is_content():
    command = [sys.executable, "-m", "hf_clip_domain.cli.main", "doctor", "--device", "mps"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
