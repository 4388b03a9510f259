"""What the workflow on GitHub calls is there."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def commands(job):
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_every_make_target_exists():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    called = [word for job in WORKFLOW["jobs"] for line in commands(job) for word in re.findall(r"make (\S+)", line)]
    assert set(called) >= {"setup", "lint", "test"} and set(called) <= set(targets)


def test_every_python_is_one_the_package_takes():
    lowest = tuple(map(int, re.search(r">=(\d+)\.(\d+)", PROJECT["project"]["requires-python"]).groups()))
    versions = WORKFLOW["jobs"]["linux"]["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.13"]  # as text: 3.10 as a number would be 3.1
    assert min(tuple(map(int, version.split("."))) for version in versions) == lowest


def test_every_command_and_marker_exists():
    scripts = PROJECT["project"]["scripts"]
    calls = [line for job in WORKFLOW["jobs"] for line in commands(job)]
    programs = {Path(line.split()[0]).name for line in calls}
    assert programs <= {"make", "python", *scripts}
    shown = subprocess.run(
        [sys.executable, "-m", "hf_clip_domain.cli.main", "--help"], capture_output=True, text=True, check=True
    ).stdout
    wanted = {line.split()[-1] for line in calls if "hf-clip-domain" in line}
    markers = {marker for line in calls for marker in re.findall(r"pytest .*-m (\w+)$", line)}
    assert wanted == {"doctor"} and markers == {"mps"}
    known = {text.split(":")[0] for text in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    commands_there = {word for word in wanted if re.search(rf"^ +{word}\b", shown, re.MULTILINE)}
    if not commands_there and not markers & known:
        pytest.skip("this copy has neither the doctor nor tests for Apple's GPU")
    assert commands_there == wanted and markers <= known


def test_apple_hardware_runs_its_own_tests_on_its_own_machine():
    job = WORKFLOW["jobs"]["apple"]
    assert job["runs-on"].startswith("macos-") and int(job["runs-on"].removeprefix("macos-")) >= 14  # Apple Silicon
    assert any("doctor" in line for line in commands("apple")) and any("-m mps" in line for line in commands("apple"))


def test_packages_are_cached_by_what_names_them():
    for job in WORKFLOW["jobs"].values():
        (python,) = [step["with"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
        assert python["cache"] == "pip"
        assert all((ROOT / file).is_file() for file in python["cache-dependency-path"].split())
