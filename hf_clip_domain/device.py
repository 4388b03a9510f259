"""What torch trains on here: CUDA, Apple's GPU (MPS) or the CPU, and what of it decides between precisions."""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from hf_clip_domain.errors import ClipDomainError

KINDS = ("cuda", "mps", "cpu")
# As torch.cpu.get_capabilities() calls them, and as Linux does in /proc/cpuinfo.
_X86 = {
    "AVX2": ("avx2", "avx2"),
    "AVX512": ("avx512_f", "avx512f"),
    "AVX512-BF16": ("avx512_bf16", "avx512_bf16"),
    "AMX-BF16": ("amx_bf16", "amx_bf16"),
}
_ARM = {"NEON": ("neon", "asimd"), "SVE": ("sve", "sve"), "BF16": ("bf16", "bf16")}


@dataclass(frozen=True)
class Device:
    """One device, described.

    Args:
        kind: torch's name of it: `cuda`, `mps` or `cpu`; another accelerator's where torch has chosen one.
        name: as its maker calls it.
        memory: bytes in all; of MPS and CPU the machine's.
        compute_capability: of CUDA, as `(8, 0)`.
        apple_generation: of MPS: 1 for M1, 2 for M2, and so on; `None` when the name does not tell.
        vector_extensions: of a CPU, those that matter to training.
    """

    kind: str
    name: str
    memory: int
    compute_capability: tuple[int, int] | None = None
    apple_generation: int | None = None
    vector_extensions: tuple[str, ...] = ()

    def __str__(self) -> str:
        details = [f"{self.memory / 2**30:.0f} GiB{' unified' if self.kind == 'mps' else ''}"]
        if self.compute_capability is not None:
            details.insert(0, "compute capability {}.{}".format(*self.compute_capability))
        details += self.vector_extensions
        return f"{self.kind}, {self.name} ({', '.join(details)})"


def find_device(kind: str | None = None, *, use_cpu: bool = False) -> torch.device:
    """The device of the given kind; by default the first there is of CUDA, MPS and CPU.

    Raises:
        ClipDomainError: there is none of this kind, or no such kind.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if kind is None:
        return torch.device("cpu" if use_cpu else next(name for name in KINDS if there[name]))
    if kind not in there:
        raise ClipDomainError(f"device {kind!r}: expected {', '.join(KINDS)}.")
    if not there[kind]:
        found = " and ".join(name for name in KINDS if there[name])
        raise ClipDomainError(
            f"device {kind!r}: torch {torch.__version__} finds none on this machine, only {found}. If the machine has "
            "one, its driver or the build of torch is missing: https://pytorch.org/get-started/locally"
        )
    return torch.device(kind)


def describe(device: torch.device) -> Device:
    """What there is to know about a device that torch has."""
    memory = psutil.virtual_memory().total
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability = (properties.major, properties.minor)
        return Device("cuda", properties.name, properties.total_memory, compute_capability=capability)
    if device.type == "mps":
        chip = _sysctl("machdep.cpu.brand_string") or "Apple GPU"
        return Device("mps", chip, memory, apple_generation=apple_generation(chip))
    if device.type == "cpu":
        return Device("cpu", processor(), memory, vector_extensions=vector_extensions())
    return Device(device.type, device.type, memory)


def apple_generation(chip: str) -> int | None:
    """`"Apple M2 Max" -> 2`; `None` for a name that is not like this."""
    found = re.match(r"Apple M(\d+)\b", chip)
    return int(found[1]) if found else None


def vector_extensions() -> tuple[str, ...]:
    """Those of the processor that matter to training, by torch's account, or Linux's where torch keeps none."""
    table = _ARM if platform.machine().lower() in ("arm64", "aarch64") else _X86
    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.10
        there = torch.cpu.get_capabilities()
        return tuple(name for name, (key, _) in table.items() if there.get(key))
    flags = {*_cpuinfo("flags").split(), *_cpuinfo("Features").split()}
    return tuple(name for name, (_, flag) in table.items() if flag in flags)


def processor() -> str:
    """The processor's name."""
    return _cpuinfo("model name") or _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def _sysctl(name: str) -> str:
    """What macOS says of itself; nothing elsewhere."""
    if platform.system() != "Darwin":
        return ""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
