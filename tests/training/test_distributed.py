"""Two processes train the trajectory of one process with the doubled batch."""

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("distributed_runs.py")
# By two processes, each of half of the rows.
RUNS = {
    **{kind: {"batch": 8, "kind": kind} for kind in ("plain", "groups", "related", "learned")},
    "shortage": {"batch": 8, "kind": "shortage", "micro": 8},
    "auto": {"batch": 8, "micro": "auto"},
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(folder, runs):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"]
    command += ["--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--num_cpu_threads_per_process", "1", "--main_process_port", str(free_port())]
    command += [str(PROGRAM), str(folder), json.dumps(runs)]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=700, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert finished.returncode == 0, finished.stderr[:3000] + finished.stderr[-3000:]
    lines = [line for line in finished.stdout.splitlines() if " by 2 processes, replays: " in line]
    assert [line.split()[0] for line in lines] == list(runs)
    replays = {line.split()[0]: int(line.split()[-1]) for line in lines}
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in runs}, replays


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """All runs by one launch, since to start processes takes longest: the folder, the outcomes, and the replays."""
    folder = tmp_path_factory.mktemp("two")
    return folder, *launch(folder, RUNS)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """`one(kind, micro)`: the same by this process, of the doubled batch."""
    spec = spec_from_file_location("distributed_runs", PROGRAM)
    program = module_from_spec(spec)
    spec.loader.exec_module(program)

    @functools.cache
    def run(kind, micro=3):
        found, shortages, _ = program.train_run(tmp_path_factory.mktemp("one"), 16, kind, micro)
        assert not shortages
        return found

    return run


def largest_difference(first, second):
    weights = [name for name in first if not name.startswith("log/")]
    return max((first[name].double() - second[name].double()).abs().max().item() for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "groups", "related", "learned"])
def test_two_processes_equal_one_with_the_doubled_batch(one, two, kind):
    """Weights, the loss's own included, and what is logged, although each process takes half of the rows."""
    whole, halves = one(kind), two[1][kind]
    assert "log/loss" in whole and whole["log/loss"].shape == (5,) and whole.keys() == halves.keys()
    assert ("contrastive_loss.log_variances" in whole) == (kind == "learned")
    for name in [name for name in whole if name.startswith("log/")]:
        assert torch.allclose(whole[name], halves[name], rtol=1e-4, atol=1e-4), name
    assert largest_difference(whole, halves) < 1e-5


@pytest.mark.slow
def test_two_processes_resume_in_the_middle_of_an_epoch(two):
    folder, whole, _ = two
    shutil.rmtree(folder / "plain" / "checkpoint-5")  # an epoch has two steps: on from checkpoint-3
    again, _ = launch(folder, {"plain": {**RUNS["plain"], "resume": True}})
    assert torch.allclose(again["plain"]["log/loss"], whole["plain"]["log/loss"])
    assert largest_difference(whole["plain"], again["plain"]) < 1e-7


@pytest.mark.slow
def test_when_one_of_two_processes_runs_out_of_memory_both_run_the_step_again(one, two):
    undisturbed, disturbed = one("shortage", 16), two[1]["shortage"]
    assert two[2]["shortage"] >= 5
    assert disturbed["log/loss"].shape == undisturbed["log/loss"].shape == (20,)
    assert torch.allclose(disturbed["log/loss"], undisturbed["log/loss"], rtol=1e-4, atol=1e-4)
    assert largest_difference(undisturbed, disturbed) < 1e-5


@pytest.mark.slow
def test_two_processes_choose_their_micro_batches_by_themselves(one, two):
    assert largest_difference(one("plain"), two[1]["auto"]) < 1e-5
