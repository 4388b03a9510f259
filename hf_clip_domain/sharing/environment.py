"""Where a model was trained: versions and hardware, for its card."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import psutil
import torch

from hf_clip_domain.device import describe, find_device, processor
from hf_clip_domain.models.precision import read_record

_PACKAGES = ("hf-clip-domain", "torch", "transformers", "accelerate", "datasets", "peft", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Python and the packages that decide a run's result; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, str]:
    """Accelerator, processor, cores, memory and system."""
    device = find_device()
    if device.type == "cuda":
        accelerator = f"{torch.cuda.device_count()} x {describe(device).name}"
    elif device.type == "mps":
        accelerator = f"{describe(device).name} (MPS)"
    else:
        accelerator = "none (CPU)"
    return {
        "accelerator": accelerator,
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
    }


def precision(folder: Path) -> dict[str, str]:
    """In which precision the run of this folder trained, and why; empty where that is not recorded."""
    record = read_record(folder)
    return {"precision": f"{record['name']}, since {record['reason']}"} if record else {}


def git_commit() -> str | None:
    """The commit of the folder the command runs in, if it is a git checkout."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
