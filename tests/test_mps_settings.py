"""Apple's settings are the user's first, and set before torch could have read them."""

import subprocess
import sys
from pathlib import Path

import pytest

from hf_clip_domain.mps_settings import FALLBACK, HIGH_WATERMARK, LOW_WATERMARK, prepare_mps

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({}, {HIGH_WATERMARK: "1.0", LOW_WATERMARK: "0.9", FALLBACK: "1"}),
        ({FALLBACK: "0"}, {HIGH_WATERMARK: "1.0", LOW_WATERMARK: "0.9"}),
        ({HIGH_WATERMARK: "0.7"}, {LOW_WATERMARK: "0.7", FALLBACK: "1"}),  # torch refuses low above high
        ({HIGH_WATERMARK: "0.0"}, {LOW_WATERMARK: "0.9", FALLBACK: "1"}),  # no limit at all
        ({LOW_WATERMARK: "1.4"}, {HIGH_WATERMARK: "1.4", FALLBACK: "1"}),
        ({HIGH_WATERMARK: "much"}, {LOW_WATERMARK: "0.9", FALLBACK: "1"}),
    ],
)
def test_what_the_user_has_set_stays_and_decides(user, expected):
    environment = dict(user)
    assert prepare_mps(environment, "darwin") == expected
    assert environment == {**user, **expected}


def test_other_systems_are_left_alone():
    environment = {}
    assert prepare_mps(environment, "linux") == {} and environment == {}


@pytest.mark.parametrize("entry", ["recipe", "command"])
def test_the_entry_points_prepare_before_torch_is_imported(entry):
    program = f"""
import runpy, sys
import hf_clip_domain.mps_settings as settings

def prepare():
    print("prepared, torch imported:", "torch" in sys.modules)
    raise KeyboardInterrupt

settings.prepare_mps = prepare
sys.argv = ["x", "doctor"]
if {entry == "recipe"}:
    runpy.run_path({str(ROOT / "recipes" / "finetune.py")!r}, run_name="__main__")
else:
    from hf_clip_domain.cli.main import main
    sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "prepared, torch imported: False" and done.returncode == 130
