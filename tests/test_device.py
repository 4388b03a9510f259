"""Devices as they describe themselves; those that are not here are faked at torch's own questions."""

from types import SimpleNamespace

import pytest
import torch

from hf_clip_domain import device
from hf_clip_domain.device import Device, apple_generation, describe, find_device, vector_extensions
from hf_clip_domain.errors import ClipDomainError


def fake_availability(monkeypatch, *, cuda=False, mps=False):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("chip", "generation"),
    [("Apple M1", 1), ("Apple M2 Max", 2), ("Apple M3 Pro", 3), ("Apple M4", 4), ("Apple M12 Ultra", 12)]
    + [("Intel(R) Core(TM) i9-9880H CPU @ 2.30GHz", None), ("Apple GPU", None), ("", None)],
)
def test_the_generation_of_an_apple_chip_is_in_its_name(chip, generation):
    assert apple_generation(chip) == generation


@pytest.mark.parametrize(
    ("there", "use_cpu", "kind"),
    [
        ({"cuda": True, "mps": True}, False, "cuda"),
        ({"mps": True}, False, "mps"),
        ({}, False, "cpu"),
        ({"cuda": True, "mps": True}, True, "cpu"),
    ],
)
def test_the_first_device_there_is_unless_the_cpu_is_wanted(monkeypatch, there, use_cpu, kind):
    fake_availability(monkeypatch, **there)
    assert find_device(use_cpu=use_cpu).type == kind


def test_a_device_that_is_not_there_is_an_error_that_says_what_is(monkeypatch):
    fake_availability(monkeypatch, mps=True)
    assert find_device("mps").type == "mps" and find_device("cpu").type == "cpu"
    with pytest.raises(ClipDomainError, match="'cuda'.* only mps and cpu"):
        find_device("cuda")
    with pytest.raises(ClipDomainError, match="expected cuda, mps, cpu"):
        find_device("tpu")


def test_a_cuda_device_tells_name_memory_and_capability(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA A100", total_memory=40 * 2**30, major=8, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    found = describe(torch.device("cuda"))
    assert found == Device("cuda", "NVIDIA A100", 40 * 2**30, compute_capability=(8, 0))
    assert str(found) == "cuda, NVIDIA A100 (compute capability 8.0, 40 GiB)"


def test_apples_gpu_is_known_by_the_chip_and_shares_the_machines_memory(monkeypatch):
    monkeypatch.setattr(device, "_sysctl", {"machdep.cpu.brand_string": "Apple M2 Max"}.get)
    found = describe(torch.device("mps"))
    assert (found.kind, found.name, found.apple_generation) == ("mps", "Apple M2 Max", 2)
    assert found.memory == describe(torch.device("cpu")).memory and "unified" in str(found)


def test_the_processors_extensions_are_the_same_by_torch_and_by_linux(monkeypatch):
    by_torch = vector_extensions()
    assert by_torch or torch.backends.cpu.get_cpu_capability() == "DEFAULT"
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    if device._cpuinfo("flags") or device._cpuinfo("Features"):
        assert vector_extensions() == by_torch


def test_extensions_without_torchs_account_are_those_of_the_kernel(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(device.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(device, "_cpuinfo", {"flags": "", "Features": "fp asimd bf16 crc32"}.get)
    assert vector_extensions() == ("NEON", "BF16")
    monkeypatch.setattr(device.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(device, "_cpuinfo", {"flags": "sse avx2 avx512f amx_bf16", "Features": ""}.get)
    assert vector_extensions() == ("AVX2", "AVX512", "AMX-BF16")
