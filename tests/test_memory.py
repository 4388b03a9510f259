"""Memory is measured, not guessed."""

import subprocess
import sys

import pytest
import torch

from hf_clip_domain import memory

CPU = torch.device("cpu")


def test_the_peak_of_a_block_is_seen_and_forgotten():
    memory.release_free_blocks()  # those of earlier tests would be used again, and nothing be taken
    before = memory.used(CPU)
    with memory.Peak(CPU) as large:
        block = torch.ones(64 * 2**20 // 4)
        del block
    with memory.Peak(CPU) as small:
        torch.ones(10)
    assert 60 * memory.MIB < large.above < 80 * memory.MIB
    assert small.above < 8 * memory.MIB
    assert large.bytes >= before


def test_the_peak_is_sampled_where_the_kernel_does_not_tell(monkeypatch):
    monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)
    with memory.Peak(CPU) as peak:
        block = torch.ones(64 * 2**20 // 4)
        block.cumsum(0)
        del block
    assert peak.above > 60 * memory.MIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on the address space")
def test_a_limit_on_the_address_space_is_the_room():
    program = """
import resource, torch
from hf_clip_domain import memory
free = memory.room(torch.device("cpu"))
vms = memory._PROCESS.memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (vms + 300 * 2**20,) * 2)
limited = memory.room(torch.device("cpu")) - memory._free_in_heap()  # whose scattered blocks are no large one
torch.empty(limited - 8 * 2**20, dtype=torch.uint8)
try:
    torch.empty(limited + 8 * 2**20, dtype=torch.uint8)
except RuntimeError:
    print(limited < 301 * 2**20 < free)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_a_container_limit_is_the_room(monkeypatch, tmp_path):
    for name, text in {
        "memory.max": "1000000",
        "memory.current": "400000",
        "memory.stat": "anon 1\ninactive_file 50000",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_free_in_heap", lambda: 0)
    monkeypatch.setattr(memory, "_cgroup_files", lambda: [(tmp_path / "memory.max", tmp_path / "memory.current")])
    assert memory.room(CPU) == 650_000
    (tmp_path / "memory.max").write_text("max")
    assert memory.room(CPU) > 650_000
